"""Protocol `own`: networks are trained as the data itself says, from where it was made to start."""

import time
from collections.abc import Callable

from datadistill.distilled import DistilledData
from datadistill.engine.functional import Network, Weights
from datadistill.evaluation.config import NETS, Trial
from datadistill.evaluation.scores import Score, summarize
from datadistill.evaluation.trained import accuracies_of
from datadistill.models import SCHEMES
from datadistill.pretraining.initial_weights import Fixed, InitialWeights, Random
from datadistill.pretraining.pool import Networks, Pool
from datadistill.training.accuracy import accuracy_of
from datadistill.training.carried import inner_of, recipe_of
from datadistill.training.fit import path, walk_of
from datadistill.utils import ranks
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream

_BY_STEP_AT_MOST = 10


def judge_own(trial: Trial) -> Score:
    """The score of networks that are trained by the data's own recipe.

    Raises:
        RequestError: the data asks for something unknown, or does not fit the network or the pool.
    """
    recipe, config = recipe_of(trial.distilled), trial.config
    began, distilled = time.perf_counter(), trial.distilled.to(trial.device)
    network = trial.make_network()
    starts = _starts(trial, distilled, network)
    nets = _count(starts, config.nets)
    draw, steps = _draw(starts, nets, config.seed), recipe.steps_in(walk_of(recipe, distilled))
    every = recipe.takes_own_steps and steps <= _BY_STEP_AT_MOST

    def along(net: int) -> list[float]:
        walked = path(network, draw(net), distilled, recipe, stream(config.seed, "evaluation-noise", net))
        reached = [weights for t, weights in enumerate(walked) if every or t in (0, steps)]
        trial.count()
        return [accuracy_of(network, weights, trial.judged_on).correct for weights in reached]

    if recipe.takes_own_steps:
        found = ranks.shared(lambda mine: [along(net) for net in mine], range(nets))
    else:
        found = accuracies_of(trial, network, recipe, draw, nets)
    by_step = tuple(summarize(list(step), len(trial.judged_on)) for step in zip(*found, strict=True))
    return Score(
        model=trial.model_name,
        weights=_describe(distilled, starts, config.pool),
        protocol="own",
        nets=nets,
        split=config.split,
        images=len(trial.judged_on),
        accuracy=by_step[-1],
        before=by_step[0],
        by_step=by_step[1:] if every else (),
        seconds=time.perf_counter() - began,
        device=str(trial.device),
        settings=None if recipe.takes_own_steps else inner_of(recipe),
    )


def _starts(trial: Trial, distilled: DistilledData, network: Network) -> InitialWeights:
    """Initial weights, by the scheme that was asked for where they are drawn."""
    if trial.config.pool is not None:
        trial.config.pool.check_fits(network, trial.model_name, trial.real)
    starts = _own_starts(trial, distilled, network)
    if trial.config.scheme is None:
        return starts
    if not isinstance(starts, Random):
        raise RequestError(
            f"scheme is {trial.config.scheme}, but these initial weights are not drawn: add --weights random-init"
        )
    return Random(starts.network, SCHEMES.get(trial.config.scheme).name)


def _own_starts(trial: Trial, distilled: DistilledData, network: Network) -> InitialWeights:
    mine, weights, pool = distilled.provenance.weights, trial.config.weights, trial.config.pool
    if weights == "own" and mine.get("kind") == "random-pretrained":
        return _judges(distilled, pool).to(trial.device)
    if pool is not None and (weights != "own" or pool.digest != mine.get("pool")):
        raise RequestError(
            f"this data was made for {mine.get('kind')} and is judged with weights {weights}, which take no pool: "
            "leave it out"
        )
    if weights == "own" and distilled.initial_weights is not None and not trial.is_other_model:
        expected = {name: tuple(p.shape) for name, p in network.module.named_parameters()}
        expected |= {name: tuple(weight.shape) for name, weight in network.constants.items()}
        found = {name: tuple(w.shape) for name, w in distilled.initial_weights.items()}
        if expected != found:
            raise RequestError(
                f"the saved initial weights do not fit {distilled.provenance.model}: "
                "give --model, or --weights random-init"
            )
        return Fixed(distilled.initial_weights, network.frozen)
    return Random(network, str(mine.get("scheme", "xavier")))


def _judges(distilled: DistilledData, pool: Pool | None) -> Networks:
    """Networks of a pool that distilling never saw."""
    mine = distilled.provenance
    if pool is None:
        raise RequestError(
            f"this data was made for trained networks: {mine.model}, trained on {mine.weights.get('source')}, of pool "
            f"{str(mine.weights.get('pool'))[:8]}: give its file, or another pool, with --pool, or judge the data on "
            "untrained networks with --weights random-init"
        )
    # Networks that were trained further are no strangers to what was distilled with those they come from.
    known = mine.weights.get("pool") in (pool.digest, pool.facts.start)
    return pool.for_judging if known else pool.networks


def _count(starts: InitialWeights, nets: int | None) -> int:
    """Number of networks."""
    if starts.fixed is not None:
        return 1
    if not isinstance(starts, Networks):
        return nets or NETS
    if nets is not None and nets > len(starts):
        raise RequestError(f"nets is {nets}, but the pool has {len(starts)} networks for judging")
    return nets or min(NETS, len(starts))


def _draw(starts: InitialWeights, nets: int, seed: int) -> Callable[[int], Weights]:
    """Initial weights by number: of a pool drawn together, otherwise each from a generator of its own."""
    if isinstance(starts, Networks):
        return starts.sample(nets, stream(seed, "evaluation")).__getitem__
    return lambda net: starts.sample(1, stream(seed, "evaluation", net))[0]


def _describe(distilled: DistilledData, starts: InitialWeights, pool: Pool | None) -> str:
    mine = distilled.provenance.weights
    if isinstance(starts, Networks) and pool is not None:
        return f"random-pretrained ({pool.label})"
    if isinstance(starts, Random):
        return f"random-init ({starts.scheme})"
    kind = str(mine.get("kind", "fixed-init"))
    if kind != "fixed-pretrained":
        return f"{kind} ({mine.get('scheme', 'xavier')})"
    return f"{kind} ({mine['source']})" if "source" in mine else f"{kind} (the module's own)"

"""Protocol `own`: plain gradient descent by the data's own steps, in its own order, with its own learning rates."""

import time
from collections.abc import Iterator

from datadistill.distilled import DistilledData
from datadistill.engine.functional import Network, Weights
from datadistill.engine.unroll import with_noise
from datadistill.evaluation.config import NETS, Trial
from datadistill.evaluation.scores import Score, summarize
from datadistill.models import SCHEMES
from datadistill.pretraining.initial_weights import Fixed, InitialWeights, Random
from datadistill.pretraining.pool import Networks, Pool
from datadistill.training.accuracy import accuracy_along
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream

_BY_STEP_AT_MOST = 10


def judge_steps(trial: Trial) -> Score:
    """The score of networks that take the data's own steps.

    Raises:
        RequestError: the data asks for something else, or does not fit the network or the pool.
    """
    _check_inner(trial.distilled)
    began, distilled = time.perf_counter(), trial.distilled.to(trial.device)
    network = trial.make_network()
    starts = _starts(trial, distilled, network)
    steps = distilled.inner_steps()
    every = len(steps) <= _BY_STEP_AT_MOST
    paths = []
    for net, start in enumerate(_draws(starts, _count(starts, trial.nets), trial.seed)):
        noisy = with_noise(network, steps, stream(trial.seed, "evaluation-noise", net))
        path = accuracy_along(network, start, noisy, trial.judged_on, every)
        paths.append([accuracy.correct for accuracy in path])
        trial.count()
    by_step = tuple(summarize(list(step), len(trial.judged_on)) for step in zip(*paths, strict=True))
    return Score(
        model=trial.model_name,
        weights=_describe(distilled, starts, trial.pool),
        protocol="own",
        nets=len(paths),
        split=trial.split,
        images=len(trial.judged_on),
        accuracy=by_step[-1],
        before=by_step[0],
        by_step=by_step[1:] if every else (),
        seconds=time.perf_counter() - began,
        device=str(trial.device),
    )


def _check_inner(distilled: DistilledData) -> None:
    """Refuse data that asks for more than protocol own knows, instead of judging it as something else."""
    inner = distilled.provenance.inner
    known = {"optimizer": "sgd", "loss": "cross-entropy", "augment": None}
    for name, value in known.items():
        if inner.get(name) != value:
            raise RequestError(f"protocol own needs {name} {value}, but this data was made with {inner.get(name)!r}")


def _starts(trial: Trial, distilled: DistilledData, network: Network) -> InitialWeights:
    """Where networks start, by the scheme that was asked for where they are drawn."""
    if trial.pool is not None:
        trial.pool.check_fits(network, trial.model_name, trial.real)
    starts = _own_starts(trial, distilled, network)
    if trial.scheme is None:
        return starts
    if not isinstance(starts, Random):
        raise RequestError(
            f"scheme is {trial.scheme}, but these initial weights are not drawn: add --weights random-init"
        )
    return Random(starts.network, SCHEMES.get(trial.scheme).name)


def _own_starts(trial: Trial, distilled: DistilledData, network: Network) -> InitialWeights:
    mine, weights, pool = distilled.provenance.weights, trial.weights, trial.pool
    if weights == "own" and mine.get("kind") == "random-pretrained":
        return _judges(distilled, pool).to(trial.device)
    if pool is not None and (weights != "own" or pool.digest != mine.get("pool")):
        raise RequestError(
            f"this data was made for {mine.get('kind')} and is judged with weights {weights}, which take no pool: "
            "leave it out"
        )
    if weights == "own" and distilled.initial_weights is not None and not trial.is_other_model:
        expected = {name: tuple(p.shape) for name, p in network.module.named_parameters()}
        found = {name: tuple(w.shape) for name, w in distilled.initial_weights.items()}
        if expected != found:
            raise RequestError(
                f"the saved initial weights do not fit {distilled.provenance.model}: "
                "give --model, or --weights random-init"
            )
        return Fixed(distilled.initial_weights)
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
    """How many networks are trained."""
    if starts.fixed is not None:
        return 1
    if not isinstance(starts, Networks):
        return nets or NETS
    if nets is not None and nets > len(starts):
        raise RequestError(f"nets is {nets}, but the pool has {len(starts)} networks for judging")
    return nets or min(NETS, len(starts))


def _draws(starts: InitialWeights, nets: int, seed: int) -> Iterator[Weights]:
    """Different networks: of a pool drawn together, otherwise each from a generator of its own."""
    if isinstance(starts, Networks):
        yield from starts.sample(nets, stream(seed, "evaluation"))
        return
    for net in range(nets):
        yield from starts.sample(1, stream(seed, "evaluation", net))


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

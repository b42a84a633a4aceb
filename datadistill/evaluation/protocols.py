"""Protocols: how networks are trained on distilled data before they are tested."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from datadistill.data import Datasets, RealData, as_real
from datadistill.distilled import DistilledData
from datadistill.errors import RequestError, unknown_name
from datadistill.evaluation.accuracy import accuracy_along
from datadistill.evaluation.nearest import judge_nearest
from datadistill.evaluation.scores import Score, summarize
from datadistill.inner.functional import Network, Weights, make_network
from datadistill.inner.unroll import with_noise
from datadistill.models import SCHEMES, ModelFactory, chosen_model, create_model, model_name, same_model
from datadistill.pools import Networks, Pool
from datadistill.registry import Registry
from datadistill.runtime import stream
from datadistill.weights import Fixed, InitialWeights, Random


@dataclass(frozen=True)
class ProtocolInfo:
    """A protocol.

    Attributes:
        name: what people type.
        line: one line of explanation.
    """

    name: str
    line: str


PROTOCOLS = Registry(
    "protocol",
    (
        ProtocolInfo("own", "the data's own steps, in its own order, with its own learning rates"),
        ProtocolInfo("nearest", "no network: every test image has the class of the nearest distilled image"),
    ),
)

NETS = 20
_BY_STEP_AT_MOST = 10


def evaluate(
    distilled: DistilledData,
    real: RealData | Datasets,
    *,
    model: str | ModelFactory | None = None,
    weights: Literal["own", "random-init"] = "own",
    nets: int | None = None,
    protocol: str = "own",
    split: Literal["test", "held_out"] = "test",
    seed: int = 0,
    pool: Pool | None = None,
    scheme: str | None = None,
    batch_norm: str | None = None,
    count: Callable[[], None] = lambda: None,
) -> Score:
    """Train networks on distilled data and test them on real images.

    Distilling never draws from the generators used here, so fresh networks are ones it never saw.

    Args:
        distilled: what is judged.
        real: the dataset it is judged on; or a training and a test `Dataset`, as for `from_datasets`.
        model: another network than the one it was made for.
        weights: `own`: where the data was made to start, so that fixed-init data is judged from its saved initial
            weights, with one network; `random-init`: fresh draws in any case.
        nets: how many fresh networks; fixed initial weights need one and get one. Without it 20, or as many as the
            pool has for judging.
        protocol: one of `PROTOCOLS`.
        split: `test`, or `held_out` for choosing between sets.
        seed: of the fresh draws.
        pool: of trained networks, for data made for random-pretrained ones. Of the pool that the data was made with,
            only the reserved networks are used; of any other one, all of them.
        scheme: how fresh networks are drawn, one of `models.SCHEMES`; as the data was made for without it.
        batch_norm: what layers with running statistics do: `batch` or `frozen`; as the data was made without it.
        count: called after each network.

    Raises:
        RequestError: the data does not fit the dataset, the network or the pool, or there is nothing to draw by a
            scheme.
    """
    protocol = PROTOCOLS.get(protocol).name
    for kind, given, known in (("split", split, ("test", "held_out")), ("weights", weights, ("own", "random-init"))):
        if given not in known:
            raise unknown_name(kind, given, known)
    if nets is not None and nets < 1:
        raise RequestError(f"nets is {nets}, but must be at least 1")
    real = as_real(real)
    distilled.check_matches(real)
    if protocol == "nearest":
        if scheme is not None:
            raise RequestError("protocol nearest trains no network: leave out the scheme")
        return judge_nearest(distilled, real.test if split == "test" else real.held_out, split, model, weights, count)
    _check_protocol(distilled)
    began = time.perf_counter()
    device = real.test.images.device
    distilled = distilled.to(device)
    own = distilled.provenance.model
    chosen = chosen_model(model, own)
    name = model_name(chosen)
    policy = batch_norm or str(distilled.provenance.inner.get("batch_norm", "refused"))
    network = make_network(create_model(chosen, real).to(device), policy)
    if pool is not None:
        pool.check_fits(network, name, real)
    starts = _starts(distilled, network, weights, not same_model(name, own), pool)
    if scheme is not None:
        starts = _redrawn(starts, scheme)
    nets = _count(starts, nets)
    judged_on = real.test if split == "test" else real.held_out
    steps = distilled.inner_steps()
    every = len(steps) <= _BY_STEP_AT_MOST
    paths = []
    for net, start in enumerate(_draws(starts, nets, seed)):
        noisy = with_noise(network, steps, stream(seed, "evaluation-noise", net))
        path = accuracy_along(network, start, noisy, judged_on, every)
        paths.append([accuracy.correct for accuracy in path])
        count()
    by_step = tuple(summarize(list(step), len(judged_on)) for step in zip(*paths, strict=True))
    return Score(
        model=name,
        weights=_describe(distilled, starts, pool),
        protocol=protocol,
        nets=nets,
        split=split,
        images=len(judged_on),
        accuracy=by_step[-1],
        before=by_step[0],
        by_step=by_step[1:] if every else (),
        seconds=time.perf_counter() - began,
        device=str(device),
    )


def _check_protocol(distilled: DistilledData) -> None:
    """Refuse data that asks for more than protocol own knows, instead of judging it as something else."""
    inner = distilled.provenance.inner
    known = {"optimizer": "sgd", "loss": "cross-entropy", "augment": None}
    for name, value in known.items():
        if inner.get(name) != value:
            raise RequestError(f"protocol own needs {name} {value}, but this data was made with {inner.get(name)!r}")


def _starts(
    distilled: DistilledData, network: Network, weights: str, other_model: bool, pool: Pool | None
) -> InitialWeights:
    mine = distilled.provenance.weights
    if weights == "own" and mine.get("kind") == "random-pretrained":
        return _judges(distilled, pool).to(next(network.module.parameters()).device)
    if pool is not None and (weights != "own" or pool.digest != mine.get("pool")):
        raise RequestError(
            f"this data was made for {mine.get('kind')} and is judged with weights {weights}, which take no pool: "
            "leave it out"
        )
    if weights == "own" and distilled.initial_weights is not None and not other_model:
        expected = {name: tuple(p.shape) for name, p in network.module.named_parameters()}
        found = {name: tuple(w.shape) for name, w in distilled.initial_weights.items()}
        if expected != found:
            raise RequestError(
                f"the saved initial weights do not fit {distilled.provenance.model}: "
                "give --model, or --weights random-init"
            )
        return Fixed(distilled.initial_weights)
    return Random(network, str(mine.get("scheme", "xavier")))


def _redrawn(starts: InitialWeights, scheme: str) -> Random:
    """The same networks, drawn by another scheme."""
    if not isinstance(starts, Random):
        raise RequestError(f"scheme is {scheme}, but these initial weights are not drawn: add --weights random-init")
    return Random(starts.network, SCHEMES.get(scheme).name)


def _judges(distilled: DistilledData, pool: Pool | None) -> Networks:
    """Networks of a pool that distilling never saw."""
    mine = distilled.provenance
    if pool is None:
        raise RequestError(
            f"this data was made for trained networks: {mine.model}, trained on {mine.weights.get('source')}, of pool "
            f"{str(mine.weights.get('pool'))[:8]}: give its file, or another pool, with --pool, or judge the data on "
            "untrained networks with --weights random-init"
        )
    return pool.for_judging if pool.digest == mine.weights.get("pool") else pool.networks


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

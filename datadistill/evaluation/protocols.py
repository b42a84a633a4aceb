"""Protocols: how networks are trained on distilled data before they are tested."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from datadistill.data.real import RealData
from datadistill.distilled import DistilledData
from datadistill.errors import RequestError, unknown_name
from datadistill.evaluation.accuracy import accuracy_along
from datadistill.evaluation.nearest import judge_nearest
from datadistill.evaluation.scores import Score, summarize
from datadistill.inner.functional import Network, make_network
from datadistill.inner.unroll import with_noise
from datadistill.models import ModelFactory, create_model, model_name
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

_BY_STEP_AT_MOST = 10


def evaluate(
    distilled: DistilledData,
    real: RealData,
    *,
    model: str | ModelFactory | None = None,
    weights: Literal["own", "random-init"] = "own",
    nets: int = 20,
    protocol: str = "own",
    split: Literal["test", "held_out"] = "test",
    seed: int = 0,
    count: Callable[[], None] = lambda: None,
) -> Score:
    """Train networks on distilled data and test them on real images.

    Distilling never draws from the generators used here, so fresh networks are ones it never saw.

    Args:
        distilled: what is judged.
        real: the dataset it is judged on.
        model: another network than the one it was made for.
        weights: `own`: where the data was made to start, so that fixed-init data is judged from its saved initial
            weights, with one network; `random-init`: fresh draws in any case.
        nets: how many fresh networks; fixed initial weights need one and get one.
        protocol: one of `PROTOCOLS`.
        split: `test`, or `held_out` for choosing between sets.
        seed: of the fresh draws.
        count: called after each network.

    Raises:
        RequestError: the data does not fit the dataset or the network.
    """
    protocol = PROTOCOLS.get(protocol).name
    for kind, given, known in (("split", split, ("test", "held_out")), ("weights", weights, ("own", "random-init"))):
        if given not in known:
            raise unknown_name(kind, given, known)
    if nets < 1:
        raise RequestError(f"nets is {nets}, but must be at least 1")
    distilled.check_matches(real)
    if protocol == "nearest":
        return judge_nearest(distilled, real.test if split == "test" else real.held_out, split, model, weights, count)
    _check_protocol(distilled)
    began = time.perf_counter()
    device = real.test.images.device
    distilled = distilled.to(device)
    own = distilled.provenance.model
    if model is None and ":" in own:
        raise RequestError(f"this data was made for a network of your own, {own}: pass it as model")
    policy = str(distilled.provenance.inner.get("batch_norm", "refused"))
    network = make_network(create_model(model or own, real).to(device), policy)
    starts = _starts(distilled, network, weights, other_model=model is not None and model_name(model) != own)
    nets = 1 if starts.fixed is not None else nets
    judged_on = real.test if split == "test" else real.held_out
    steps = distilled.inner_steps()
    every = len(steps) <= _BY_STEP_AT_MOST
    paths = []
    for net in range(nets):
        (start,) = starts.sample(1, stream(seed, "evaluation", net))
        noisy = with_noise(network, steps, stream(seed, "evaluation-noise", net))
        path = accuracy_along(network, start, noisy, judged_on, every)
        paths.append([accuracy.correct for accuracy in path])
        count()
    by_step = tuple(summarize(list(step), len(judged_on)) for step in zip(*paths, strict=True))
    return Score(
        model=model_name(model or distilled.provenance.model),
        weights=_describe(distilled, starts),
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
    if distilled.soft_labels is not None:
        raise RequestError("protocol own knows hard labels only, but this data has soft ones")


def _starts(distilled: DistilledData, network: Network, weights: str, other_model: bool) -> InitialWeights:
    mine = distilled.provenance.weights
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


def _describe(distilled: DistilledData, starts: InitialWeights) -> str:
    scheme = str(distilled.provenance.weights.get("scheme", "xavier"))
    kind = "random-init" if starts.fixed is None else str(distilled.provenance.weights.get("kind", "fixed-init"))
    return f"{kind} ({scheme})"

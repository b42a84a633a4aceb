"""Protocols: how networks are trained on distilled data before they are tested."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from datadistill.data import Datasets, RealData, as_real
from datadistill.distilled import CONDENSATION, DistilledData
from datadistill.evaluation.config import NETS, EvalConfig, Trial
from datadistill.evaluation.dc import judge_condensed
from datadistill.evaluation.nearest import judge_nearest
from datadistill.evaluation.own import judge_own
from datadistill.evaluation.scores import Score
from datadistill.training.carried import dc_recipe, recipe_of
from datadistill.training.fit import walks_of
from datadistill.utils.errors import RequestError
from datadistill.utils.registry import Registry


@dataclass(frozen=True)
class ProtocolInfo:
    """A protocol.

    Attributes:
        name: what people type.
        line: one line of explanation.
        judge: does it.
    """

    name: str
    line: str
    judge: Callable[[Trial], Score]


PROTOCOLS = Registry(
    "protocol",
    (
        ProtocolInfo("own", "as the data was made for: its own steps and learning rates, or dc", judge_own),
        ProtocolInfo("dc", "fresh networks, SGD on random batches for 300 epochs, 1000 augmented", judge_condensed),
        ProtocolInfo(
            "nearest", "no network: every test image has the class of the nearest distilled image", judge_nearest
        ),
    ),
)


def evaluate(
    distilled: DistilledData,
    real: RealData | Datasets,
    config: EvalConfig | None = None,
    *,
    count: Callable[[], None] = lambda: None,
    **options: Any,
) -> Score:
    """Train networks on distilled data and test them on real images.

    Distilling never draws from the generators used here, so fresh networks are ones it never saw.

    Args:
        distilled: what is judged.
        real: the dataset it is judged on; or a training and a test `Dataset`, as for `from_datasets`.
        config: how.
        count: called as many times as `work_of` says.
        options: fields of `EvalConfig`, such as `model`, `nets` and `protocol`, in the place of those of `config`.

    Raises:
        RequestError: the data does not fit the dataset, the network or the pool, or there is nothing to draw by a
            scheme.
    """
    if not isinstance(distilled, DistilledData):
        raise RequestError(
            f"distilled is a {type(distilled).__name__}, but must be DistilledData, as dd.distill and "
            "dd.load_distilled give it"
        )
    config = replace(config or EvalConfig(), **options)
    info = _protocol_for(config.protocol, distilled, config.changes)
    real = as_real(real)
    distilled.check_matches(real)
    return info.judge(Trial(distilled, real, config, count))


def work_of(distilled: DistilledData, nets: int | None = None, protocol: str = "own", **changes: Any) -> int:
    """Number of times that `evaluate` calls `count`, at most: once for a network, or for each of its epochs."""
    info, nets = _protocol_for(protocol, distilled, changes), nets or NETS
    if info.name == CONDENSATION:
        return nets * walks_of(dc_recipe(distilled, **changes), distilled)
    if info.name != "own":
        return nets
    recipe = recipe_of(distilled)
    return nets * (1 if recipe.takes_own_steps else walks_of(recipe, distilled))


def _protocol_for(name: str, distilled: DistilledData, changes: dict[str, Any]) -> ProtocolInfo:
    """The protocol that is meant: `own` is that of the data.

    Raises:
        RequestError: it is unknown, or has no such settings.
    """
    info = PROTOCOLS.get(name)
    for setting, value in changes.items():
        if value is not None and info.name != CONDENSATION:
            raise RequestError(
                f"{setting} is {value}, but protocol {info.name} has no such setting: add --protocol {CONDENSATION}"
            )
    return PROTOCOLS.get(CONDENSATION) if info.name == "own" and distilled.is_condensed else info

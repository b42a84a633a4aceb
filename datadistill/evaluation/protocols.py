"""Protocols: how networks are trained on distilled data before they are tested."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from datadistill.data import Datasets, RealData, as_real
from datadistill.distilled import CONDENSATION, DistilledData
from datadistill.evaluation.config import NETS, Trial
from datadistill.evaluation.dc import judge_condensed
from datadistill.evaluation.nearest import judge_nearest
from datadistill.evaluation.own_steps import judge_steps
from datadistill.evaluation.scores import Score
from datadistill.models import ModelFactory
from datadistill.pretraining.pool import Pool
from datadistill.training.dc_recipe import condensation_for
from datadistill.utils.errors import RequestError, unknown_name
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
        ProtocolInfo("own", "as the data was made for: its own steps and learning rates, or dc", judge_steps),
        ProtocolInfo("dc", "fresh networks, SGD on random batches for 300 epochs, 1000 augmented", judge_condensed),
        ProtocolInfo(
            "nearest", "no network: every test image has the class of the nearest distilled image", judge_nearest
        ),
    ),
)


def evaluate(
    distilled: DistilledData,
    real: RealData | Datasets,
    *,
    model: str | ModelFactory | None = None,
    weights: Literal["own", "random-init"] = "own",
    nets: int | None = None,
    protocol: str = "own",
    epochs: int | None = None,
    augment: str | None = None,
    rate: float | None = None,
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
            weights, with one network; `random-init`: fresh draws in any case, as always with protocol `dc`.
        nets: how many fresh networks; fixed initial weights need one and get one. Without it 20, or as many as the
            pool has for judging.
        protocol: one of `PROTOCOLS`.
        epochs: of protocol `dc`; without it as the data says, or 300, or 1000 with augmentation.
        augment: of protocol `dc`: `none`, or parts such as `color_crop_flip`; as the data says without it.
        rate: of protocol `dc`: the learning rate; as the data says, or 0.01, without it.
        split: `test`, or `held_out` for choosing between sets.
        seed: of the fresh draws.
        pool: of trained networks, for data made for random-pretrained ones. Of the pool that the data was made with,
            only the reserved networks are used; of any other one, all of them.
        scheme: how fresh networks are drawn, one of `models.SCHEMES`; as the data was made for without it.
        batch_norm: what layers with running statistics do: `batch` or `frozen`; as the data was made without it.
        count: called as many times as `work_of` says.

    Raises:
        RequestError: the data does not fit the dataset, the network or the pool, or there is nothing to draw by a
            scheme.
    """
    changes = {"epochs": epochs, "augment": augment, "rate": rate}
    info = _protocol_for(protocol, distilled, changes)
    for kind, given, known in (("split", split, ("test", "held_out")), ("weights", weights, ("own", "random-init"))):
        if given not in known:
            raise unknown_name(kind, given, known)
    if nets is not None and nets < 1:
        raise RequestError(f"nets is {nets}, but must be at least 1")
    real = as_real(real)
    distilled.check_matches(real)
    return info.judge(
        Trial(
            distilled=distilled,
            real=real,
            model=model,
            weights=weights,
            nets=nets,
            split=split,
            seed=seed,
            pool=pool,
            scheme=scheme,
            batch_norm=batch_norm,
            count=count,
            changes=changes,
        )
    )


def work_of(distilled: DistilledData, nets: int | None = None, protocol: str = "own", **changes: Any) -> int:
    """How many times `evaluate` calls `count`, at most: once for a network, or for each of its epochs.

    Args:
        distilled: the data.
        nets: as for `evaluate`.
        protocol: as for `evaluate`.
        changes: `epochs`, `augment` and `rate` as for `evaluate`.
    """
    info = _protocol_for(protocol, distilled, changes)
    return (nets or NETS) * (condensation_for(distilled, **changes).walks if info.name == CONDENSATION else 1)


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

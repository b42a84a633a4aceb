"""Evaluation configuration, and the resolved arguments that every protocol is given."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from datadistill.data.real import RealData, Split
from datadistill.distilled import DistilledData
from datadistill.engine.functional import Network
from datadistill.engine.networks import network_for
from datadistill.models import ModelFactory, model_name, same_model
from datadistill.models.gate import passed
from datadistill.pretraining.pool import Pool
from datadistill.training.recipe import DC, EPOCHS_AUGMENTED
from datadistill.utils.errors import RequestError, unknown_name
from datadistill.utils.fields import Flag

NETS = 20
DC_SETTINGS = ("epochs", "augment", "rate")
"""Fields of `EvalConfig` for protocol `dc` alone."""

_NO_FLAG: dict[str, Any] = {"flag": None}


@dataclass(frozen=True, eq=False)
class EvalConfig:
    """Configuration of an evaluation.

    What is None is as the data says. Where it says nothing: 20 networks, or all that the pool has for judging; and for
    protocol `dc` 300 epochs, 1000 with augmentation, no augmentation, and a rate of 0.01.

    Attributes:
        model: another network than the one it was made for.
        weights: `own`: where the data was made to start, so that fixed-init data is judged from its saved initial
            weights, with one network; `random-init`: fresh draws in any case, as always with protocol `dc`.
        nets: fresh networks to judge by; fixed initial weights need one and get one.
        protocol: one of `PROTOCOLS`.
        epochs: of protocol `dc`: walks over the images.
        augment: of protocol `dc`: `none`, or parts such as `color_crop_cutout_flip_scale_rotate`, of which one, drawn
            for each batch, changes the images.
        rate: of protocol `dc`: learning rate.
        split: real images that networks are tested on: `test`, or `held_out`, of the training images, for choosing
            between sets.
        seed: of the fresh draws.
        pool: of trained networks, for data made for random-pretrained ones. Of the pool that the data was made with,
            only the reserved networks are used; of any other one, all of them.
        scheme: how fresh networks are drawn: datadistill list schemes.
        batch_norm: layers with running statistics: `batch` uses each batch's own, `frozen` what the network has.

    Raises:
        RequestError: a split, a kind of weights or a number of networks that cannot be.
    """

    model: str | ModelFactory | None = field(default=None, metadata=_NO_FLAG)
    weights: Literal["own", "random-init"] = "own"
    nets: int | None = field(default=None, metadata=Flag(otherwise=f"{NETS}, or all that the pool has").metadata)
    protocol: str = field(default="own", metadata=_NO_FLAG)
    epochs: int | None = field(
        default=None,
        metadata=Flag(otherwise=f"as the data says, or {DC.epochs}, or {EPOCHS_AUGMENTED} with augmentation").metadata,
    )
    augment: str | None = field(
        default=None, metadata=Flag(metavar="PARTS|none", otherwise="as the data says, or none").metadata
    )
    rate: float | None = field(default=None, metadata=Flag(otherwise=f"as the data says, or {DC.lr}").metadata)
    split: Literal["test", "held_out"] = "test"
    seed: int = 0
    pool: Pool | None = field(default=None, metadata=_NO_FLAG)
    scheme: str | None = field(default=None, metadata=Flag(otherwise="as the data was made for").metadata)
    batch_norm: Literal["auto", "refused", "batch", "frozen"] | None = field(
        default=None, metadata=Flag(otherwise="as the data was made").metadata
    )

    def __post_init__(self) -> None:
        for kind, given, known in (
            ("split", self.split, ("test", "held_out")),
            ("weights", self.weights, ("own", "random-init")),
        ):
            if given not in known:
                raise unknown_name(kind, given, known)
        if self.nets is not None and self.nets < 1:
            raise RequestError(f"nets is {self.nets}, but must be at least 1")

    @property
    def changes(self) -> dict[str, Any]:
        """Settings of protocol `dc` alone."""
        return {name: getattr(self, name) for name in DC_SETTINGS}


@dataclass(frozen=True, eq=False)
class Trial:
    """Resolved arguments of one evaluation.

    Attributes:
        distilled: what is judged.
        real: the dataset it is judged on.
        config: how.
        count: called whenever a piece of the work is done, as many times as `work_of` says.
    """

    distilled: DistilledData
    real: RealData
    config: EvalConfig
    count: Callable[[], None] = lambda: None

    @property
    def judged_on(self) -> Split:
        """The real images that networks are tested on."""
        return self.real.test if self.config.split == "test" else self.real.held_out

    @property
    def device(self) -> torch.device:
        """Device of all of it."""
        return self.real.test.images.device

    @property
    def model_name(self) -> str:
        """The network, by name."""
        return model_name(passed("network", self.config.model, self.distilled.provenance.model))

    @property
    def is_other_model(self) -> bool:
        """Whether the network is another one than the data was made for."""
        return not same_model(self.model_name, self.distilled.provenance.model)

    def make_network(self) -> Network:
        """The network that is trained."""
        own = self.distilled.provenance
        policy = self.config.batch_norm or own.batch_norm
        network = network_for(passed("network", self.config.model, own.model), self.real, self.device, policy)
        return network if self.is_other_model else network.holding(self.distilled.initial_weights)

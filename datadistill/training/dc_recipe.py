"""Training on distilled data as the field does it: the protocol `dc`.

Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021, section 4.1, as their code has it, oddities
included, because published figures depend on them: the images are walked one epoch more than is said; the rate falls
to a tenth at the end of epoch `epochs // 2 + 1`, counted from 0; the momentum starts anew there; and weight decay falls
on biases and normalisation layers too.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.data.augment import NONE, parse_augmentation
from datadistill.distilled import CONDENSATION, DistilledData
from datadistill.engine.functional import Labels, Network, Weights
from datadistill.training.train import Training, train
from datadistill.utils.errors import RequestError

EPOCHS, EPOCHS_AUGMENTED = 300, 1000
TAKES_LEARNED = "takes_learned_rate"
"""In `inner`: whether networks are trained at the rate that the data learned, as without this, or at the one said."""

_FALLS_TO = 0.1
_ALWAYS = {"optimizer": "sgd", "loss": "cross-entropy"}
_MOST = 1e9
_TYPES = {int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class Condensation:
    """Settings of protocol `dc`; the defaults are the paper's.

    Attributes:
        epochs: the paper's number; one more is walked.
        rate: learning rate at first.
        batch: images per step, in random order.
        momentum: of SGD.
        weight_decay: this share of the weights is added to their gradient.
        augment: `none`, or parts such as `color_crop_flip`, of which one is drawn for each batch.
    """

    epochs: int = EPOCHS
    rate: float = 0.01
    batch: int = 256
    momentum: float = 0.9
    weight_decay: float = 0.0005
    augment: str = NONE

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise RequestError(f"epochs is {self.epochs}, but must be at least 1")
        self.phases()

    def phases(self) -> tuple[Training, Training]:
        """Before and after the fall of the rate."""
        first = min(self.epochs // 2 + 2, self.epochs + 1)
        whole = Training(
            epochs=first,
            rate=self.rate,
            batch=self.batch,
            optimizer="sgd",
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            falls="constant",
            augment=self.augment,
        )
        return whole, replace(whole, epochs=self.epochs + 1 - first, rate=self.rate * _FALLS_TO)

    def train(
        self,
        network: Network,
        weights: Weights,
        images: Float[Tensor, "n c h w"],
        labels: Labels,
        generator: torch.Generator,
        count: Callable[[], None] = lambda: None,
    ) -> Weights:
        """The weights of a network after training; arguments are those of `training.train`."""
        for phase in self.phases():
            weights = train(network, weights, images, labels, phase, generator, count)
        return weights

    @property
    def walks(self) -> int:
        """How often the images are walked, and `count` is called, for one network."""
        return sum(phase.epochs for phase in self.phases())

    def as_inner(self) -> dict[str, Any]:
        """As a result's provenance records it."""
        return {"protocol": CONDENSATION, **asdict(self), **_ALWAYS}

    def __str__(self) -> str:
        augment = "no augmentation" if self.augment == NONE else f"augmentation {self.augment}"
        return f"{self.epochs} epochs, rate {self.rate:.4g}, {augment}"


def read_inner(inner: Mapping[str, Any]) -> Condensation:
    """What `as_inner` wrote.

    Raises:
        RequestError: a setting is impossible or not known.
    """
    for name, value in _ALWAYS.items():
        if inner.get(name) != value:
            raise RequestError(f"protocol dc has {name} {value}, but this data was made with {inner.get(name)!r}")
    known: dict[str, Any] = {}
    for entry in fields(Condensation):
        value, kind = inner.get(entry.name, entry.default), type(entry.default)
        fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        if not fits or (kind is not str and not abs(value) < _MOST):
            raise RequestError(f"{entry.name} of protocol dc is {value!r}, but must be {_TYPES[kind]}")
        known[entry.name] = float(value) if kind is float else value
    return Condensation(**known)


def condensation_for(
    distilled: DistilledData, *, epochs: int | None = None, augment: str | None = None, rate: float | None = None
) -> Condensation:
    """How networks are trained on some data by protocol `dc`.

    Data that was made for the protocol says so itself, and may ask for the one rate that it learned; all other data
    gets the paper's settings.

    Args:
        distilled: the data.
        epochs: other ones; where augmentation is added or left out, 1000 with it and 300 without.
        augment: another one.
        rate: another one.

    Raises:
        RequestError: a setting is impossible, or the data says something that is not known.
    """
    own = Condensation()
    if distilled.is_condensed:
        inner = distilled.provenance.inner
        own, takes_learned = read_inner(inner), inner.get(TAKES_LEARNED, True)
        if not isinstance(takes_learned, bool):
            raise RequestError(f"{TAKES_LEARNED} of protocol dc is {takes_learned!r}, but must be true or false")
        if takes_learned and distilled.learning_rates is not None:
            own = replace(own, rate=float(distilled.learning_rates[0]))
    return changed(own, epochs=epochs, augment=augment, rate=rate)


def changed(
    settings: Condensation, *, epochs: int | None = None, augment: str | None = None, rate: float | None = None
) -> Condensation:
    """Settings with what is not None put in their place; the arguments are those of `condensation_for`."""
    augment = settings.augment if augment is None else re.sub(r"\s", "", augment).lower()
    is_augmented = bool(parse_augmentation(augment))
    if epochs is None:
        same = is_augmented == bool(parse_augmentation(settings.augment))
        epochs = settings.epochs if same else EPOCHS_AUGMENTED if is_augmented else EPOCHS
    return replace(settings, epochs=epochs, augment=augment, rate=settings.rate if rate is None else rate)

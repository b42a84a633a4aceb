"""Ordinary training of a network, on real images or on distilled ones, by one description of how."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.data.augment import one_of, parse_augmentation
from datadistill.engine.functional import Labels, Network, Weights, batch_gradient
from datadistill.engine.optimizers import SGD, Adam, Optimizer
from datadistill.utils.errors import RequestError

_ALWAYS = ("epochs", "rate", "batch")

PIECE = 64
"""Images of a batch that a CPU differentiates at a time: what more of them leave behind no longer fits its cache."""


@dataclass(frozen=True)
class Training:
    """How a network is trained; by default Adam with a rate that falls to zero along a cosine.

    The code of Wang et al. 2018 trains pools for 40 to 130 epochs at 2e-4 and halves the rate twice; a cosine from a
    higher rate gets as far in fewer epochs.

    Attributes:
        epochs: walks over the training images; 0 leaves a network as it is.
        rate: learning rate at first.
        batch: images per step.
        optimizer: `adam` or `sgd`.
        momentum: of SGD.
        weight_decay: this share of the weights is added to their gradient.
        falls: how the rate falls: `cosine` (to zero) or `constant`.
        augment: how images are changed: `none`, or parts such as `color_crop_flip`, of which one is drawn for each
            batch (Zhao and Bilen 2021).
    """

    epochs: int = 5
    rate: float = 0.001
    batch: int = 128
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    falls: Literal["cosine", "constant"] = "cosine"
    augment: str = "none"

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise RequestError(f"epochs is {self.epochs}, but must not be negative")
        if self.batch < 1:
            raise RequestError(f"batch is {self.batch}, but must be at least 1")
        if not 0 < self.rate < math.inf:
            raise RequestError(f"the rate is {self.rate}, but must be positive and finite")
        if self.optimizer not in ("adam", "sgd") or self.falls not in ("cosine", "constant"):
            raise RequestError(f"training by {self.optimizer} with a {self.falls} rate is not known")
        if not 0 <= self.momentum < 1 or (self.momentum and self.optimizer == "adam"):
            raise RequestError(f"momentum is {self.momentum}, but must be at least 0 and less than 1, and 0 with adam")
        if not 0 <= self.weight_decay < math.inf:
            raise RequestError(f"weight_decay is {self.weight_decay}, but must be finite and not negative")
        parse_augmentation(self.augment)

    def steps(self, images: int) -> int:
        """Gradient steps on this many images."""
        return self.epochs * math.ceil(images / self.batch)

    def known(self) -> dict[str, Any]:
        """JSON-ready, without what is as usual: a field that is new does not change what is older than it."""
        usual = {entry.name: entry.default for entry in fields(self)}
        return {name: value for name, value in asdict(self).items() if name in _ALWAYS or value != usual[name]}

    def make_optimizer(self) -> Optimizer:
        """What makes the steps."""
        return (
            Adam(weight_decay=self.weight_decay) if self.optimizer == "adam" else SGD(self.momentum, self.weight_decay)
        )

    def rate_at(self, share: float) -> float:
        """The learning rate when this share of the steps, from 0 to 1, is done."""
        return self.rate if self.falls == "constant" else self.rate * 0.5 * (1 + math.cos(math.pi * share))


def train(
    network: Network,
    weights: Weights,
    images: Float[Tensor, "n c h w"],
    labels: Labels,
    training: Training,
    generator: torch.Generator,
    count: Callable[[], None] = lambda: None,
    keep: Callable[[Weights], None] = lambda weights: None,
) -> Weights:
    """Train a network.

    Args:
        network: what is trained.
        weights: where it starts; they are not changed.
        images: what it is trained on.
        labels: their classes, or soft labels.
        training: how.
        generator: a CPU generator, for the order of the images, augmentation and dropout.
        count: called after each epoch.
        keep: called with the weights after each epoch, and with those before the first.

    Returns:
        The weights at the end. The same generator state gives the same bits with the same number of threads.
    """
    optimizer, parts = training.make_optimizer(), parse_augmentation(training.augment)
    state, step, steps = optimizer.init(weights), 0, training.steps(len(labels))
    piece = PIECE if images.device.type == "cpu" else 0
    keep(weights)
    for _ in range(training.epochs):
        order = torch.randperm(len(labels), generator=generator).to(images.device)
        for first in range(0, len(labels), training.batch):
            noise = int(torch.randint(2**62, (), generator=generator)) if network.draws else None
            chosen = order[first : first + training.batch]
            batch = one_of(images[chosen], parts, generator)
            _, gradient = batch_gradient(network, weights, batch, labels[chosen], piece, noise)
            weights, state = optimizer.update(weights, gradient, state, training.rate_at(step / steps), step)
            step += 1
        keep(weights)
        count()
    return weights

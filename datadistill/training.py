"""Ordinary training of a network on real images: for pools of trained networks, and for features."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from datadistill.data.real import Split
from datadistill.errors import RequestError
from datadistill.inner.functional import Network, Weights, batch_gradient
from datadistill.inner.optimizers import Adam


@dataclass(frozen=True)
class Training:
    """How networks are trained on real images: Adam with a rate that falls to zero along a cosine.

    The paper's code (Wang et al. 2018) trains for 40 to 130 epochs at 2e-4 and halves the rate twice; a cosine from a
    higher rate gets as far in fewer epochs.

    Attributes:
        epochs: walks over the training images; 0 leaves a network as it is.
        rate: learning rate at first.
        batch: images per step.
    """

    epochs: int = 5
    rate: float = 0.001
    batch: int = 128

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise RequestError(f"epochs is {self.epochs}, but must not be negative")
        if self.batch < 1:
            raise RequestError(f"batch is {self.batch}, but must be at least 1")
        if not 0 < self.rate < math.inf:
            raise RequestError(f"the rate is {self.rate}, but must be positive and finite")

    def steps(self, images: int) -> int:
        """Gradient steps on a split of this many images."""
        return self.epochs * math.ceil(images / self.batch)


def train(
    network: Network,
    weights: Weights,
    split: Split,
    training: Training,
    generator: torch.Generator,
    count: Callable[[], None] = lambda: None,
) -> Weights:
    """Train a network on real images.

    Args:
        network: what is trained.
        weights: where it starts; they are not changed.
        split: what it is trained on.
        training: how.
        generator: a CPU generator, for the order of the images and for dropout.
        count: called after each epoch.

    Returns:
        The weights at the end. The same generator state gives the same bits with the same number of threads.
    """
    adam, device = Adam(), split.images.device
    state, step, steps = adam.init(weights), 0, training.steps(len(split))
    for _ in range(training.epochs):
        order = torch.randperm(len(split), generator=generator)
        for chosen in torch.split(order, training.batch):
            noise = int(torch.randint(2**62, (), generator=generator)) if network.draws else None
            batch = split.take(chosen.to(device))
            _, gradient = batch_gradient(network, weights, batch.images, batch.labels, 0, noise)
            rate = training.rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            weights, state = adam.update(weights, gradient, state, rate, step)
            step += 1
        count()
    return weights

"""The inner loop: training on distilled batches, step by step."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.engine.functional import Network, Weights, batch_gradient
from datadistill.engine.losses import Labels
from datadistill.engine.optimizers import Optimizer, State


class InnerStep(NamedTuple):
    """Inputs of one gradient step of the inner loop.

    Attributes:
        images: the batch.
        labels: class indices or soft labels.
        rate: the learning rate.
        batch: the batch's number; a batch is walked once in each epoch, and what its steps say of it is added up.
        noise: the seed of what dropout and augmentation draw in this step.
    """

    images: Float[Tensor, "b c h w"]
    labels: Labels
    rate: Float[Tensor, ""]
    batch: int
    noise: int = 0


def with_noise(network: Network, steps: Sequence[InnerStep], generator: torch.Generator) -> list[InnerStep]:
    """The steps with seeds for what dropout and augmentation draw; unchanged, and nothing drawn, without either."""
    if not network.draws:
        return list(steps)
    seeds = torch.randint(2**62, (len(steps),), generator=generator).tolist()
    return [step._replace(noise=seed) for step, seed in zip(steps, seeds, strict=True)]


class Position(NamedTuple):
    """Inner state: everything the next step depends on."""

    weights: Weights
    state: State


def advance(
    network: Network, optimizer: Optimizer, position: Position, step: InnerStep, index: int, chunk: int = 0
) -> Position:
    """One step of training, without a graph.

    `chunk` images are differentiated at a time; 0: all of them.
    """
    _, gradients = batch_gradient(network, position.weights, step.images, step.labels, chunk, step.noise)
    return Position(*optimizer.update(position.weights, gradients, position.state, step.rate.detach(), index))


def walk(
    network: Network, optimizer: Optimizer, weights: Weights, steps: Iterable[InnerStep], chunk: int = 0
) -> Iterator[Weights]:
    """Weights before the first step and after every step, without any graph.

    `chunk` is as for `advance`.
    """
    position = Position(weights, optimizer.init(weights))
    yield weights
    for index, step in enumerate(steps):
        position = advance(network, optimizer, position, step, index, chunk)
        yield position.weights

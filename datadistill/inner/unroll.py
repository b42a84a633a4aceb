"""The inner loop: training on distilled batches, step by step."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor

from datadistill.inner.functional import Network, Weights, as_leaves
from datadistill.inner.optimizers import Optimizer, State


class InnerStep(NamedTuple):
    """What one gradient step of the inner loop uses.

    Attributes:
        images: the batch.
        labels: class indices.
        rate: the learning rate.
    """

    images: Float[Tensor, "b c h w"]
    labels: Int64[Tensor, "b"]
    rate: Float[Tensor, ""]


class Position(NamedTuple):
    """Where training is: everything the next step depends on."""

    weights: Weights
    state: State


def take_step(
    network: Network,
    optimizer: Optimizer,
    position: Position,
    step: InnerStep,
    index: int,
    create_graph: bool = False,
) -> Position:
    """One step of training. The position's weights must be leaves that require gradients.

    With `create_graph` the result can be differentiated with respect to the position, images and rate.
    """
    _, gradients = network.gradient(position.weights, step.images, step.labels, create_graph)
    return Position(*optimizer.update(position.weights, gradients, position.state, step.rate, index))


def walk(network: Network, optimizer: Optimizer, weights: Weights, steps: Iterable[InnerStep]) -> Iterator[Weights]:
    """Train, and yield the weights before the first step and after every step, without any graph."""
    position = Position(weights, optimizer.init(weights))
    yield weights
    for index, step in enumerate(steps):
        start = Position(as_leaves(position.weights), position.state)
        moved = take_step(network, optimizer, start, step, index)
        position = Position({name: weight.detach() for name, weight in moved.weights.items()}, moved.state)
        yield position.weights

"""The exact derivative of an outer loss through training (Wang et al. 2018, algorithm 1).

Training is a chain of positions z_0, z_1, ..., z_T, where a position is the weights and whatever the optimiser
remembers, and z_{t+1} = step(z_t, images_t, rate_t). The outer loss depends on the last weights. Walking the chain
backwards with v = dOuter/dz, one vector-Jacobian product of each step gives

    dOuter/dimages_t, dOuter/drate_t  and the next  v <- v * dz_{t+1}/dz_t .

For plain gradient descent this is the Hessian-vector product of the paper: d rate_t = -<v, g_t>,
d images_t = -rate_t d<g_t, v>/d images_t, v <- v - rate_t d<g_t, v>/d weights. A step needs nothing from the others
but its position, so what is stored is a free choice that does not change the result:

    full       every step's graph is kept from the forward walk: fastest, memory grows with T graphs.
    recompute  only the positions are kept and each graph is built again: one more gradient per step,
               memory grows with T copies of the position alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.inner.functional import Network, Weights, as_leaves
from datadistill.inner.kinks import widened
from datadistill.inner.optimizers import Optimizer
from datadistill.inner.unroll import InnerStep, Position, take_step

STORAGES = ("full", "recompute")

OuterGradient = Callable[[Weights], tuple[Float[Tensor, ""], Weights]]


@dataclass(frozen=True, eq=False)
class Hypergradient:
    """The outer loss and its derivatives, one entry per inner step.

    Attributes:
        loss: the outer loss.
        images: with respect to the step's images.
        rates: with respect to the step's learning rate, shape [T].
    """

    loss: Float[Tensor, ""]
    images: list[Float[Tensor, "b c h w"]]
    rates: Float[Tensor, "t"]


class _Graph(NamedTuple):
    """One step with its graph: the leaves it starts from and the position it ends at."""

    position: Position
    step: InnerStep
    end: Position


def hypergradient(
    network: Network,
    optimizer: Optimizer,
    weights: Weights,
    steps: Sequence[InnerStep],
    outer: OuterGradient,
    storage: str = "full",
    kink_width: float = 0.0,
) -> Hypergradient:
    """Train on the steps, take the outer loss at the end, and differentiate it through all of it.

    Args:
        network: what is trained.
        optimizer: how.
        weights: initial weights.
        steps: at least one step.
        outer: called with the final weights; returns the outer loss and its gradient with respect to them.
        storage: one of `STORAGES`; all give the same numbers.
        kink_width: 0 for the exact derivative, which exists almost everywhere; more to count the jumps of ReLU's
            derivative too, spread over this width (see `kinks`). The outer loss itself does not depend on it.

    Source: Wang et al. 2018, section 3.1 and algorithm 1; their code keeps all graphs, as `full` does.
    """
    if storage not in STORAGES:
        raise ValueError(f"unknown storage '{storage}': there are {', '.join(STORAGES)}")
    position = Position(weights, optimizer.init(weights))
    kept: list[_Graph | Position] = []
    for index, step in enumerate(steps):
        with widened(kink_width if storage == "full" else 0.0):
            graph = _build(network, optimizer, position, step, index, differentiable=storage == "full")
        kept.append(graph if storage == "full" else position)
        position = _detached(graph.end)
    loss, v_weights = outer(position.weights)
    v = Position(v_weights, {name: torch.zeros_like(s) for name, s in position.state.items()})

    images: list[Tensor] = []
    rates: list[Tensor] = []
    for index in reversed(range(len(steps))):
        entry = kept.pop()
        if not isinstance(entry, _Graph):
            with widened(kink_width):
                entry = _build(network, optimizer, entry, steps[index], index, differentiable=True)
        v, d_images, d_rate = _pull_back(entry, v)
        images.append(d_images)
        rates.append(d_rate)
    return Hypergradient(loss.detach(), images[::-1], torch.stack(rates[::-1]))


def _build(
    network: Network,
    optimizer: Optimizer,
    position: Position,
    step: InnerStep,
    index: int,
    differentiable: bool,
) -> _Graph:
    """Take a step from fresh leaves, so that its graph ends at them and not at the step before."""
    start = Position(as_leaves(position.weights), position.state)
    if differentiable:
        start = start._replace(state=as_leaves(position.state))
        step = step._replace(images=step.images.detach().requires_grad_(), rate=step.rate.detach().requires_grad_())
    return _Graph(start, step, take_step(network, optimizer, start, step, index, create_graph=differentiable))


def _pull_back(graph: _Graph, v: Position) -> tuple[Position, Tensor, Tensor]:
    """The vector-Jacobian product of one step: v at its end becomes v at its start, and the step's own part.

    Every leaf takes part in every step, so a leaf that autograd finds unused is an error and is raised,
    never a silent zero.
    """
    ends = [*graph.end.weights.values(), *graph.end.state.values()]
    vectors = [*(v.weights[n] for n in graph.end.weights), *(v.state[n] for n in graph.end.state)]
    leaves = [*graph.position.weights.values(), *graph.position.state.values()]
    *pulled, d_images, d_rate = torch.autograd.grad(ends, [*leaves, graph.step.images, graph.step.rate], vectors)
    count = len(graph.position.weights)
    weights = dict(zip(graph.position.weights, pulled[:count], strict=True))
    state = dict(zip(graph.position.state, pulled[count:], strict=True))
    return Position(weights, state), d_images, d_rate


def _detached(position: Position) -> Position:
    return Position(
        {name: tensor.detach() for name, tensor in position.weights.items()},
        {name: tensor.detach() for name, tensor in position.state.items()},
    )

"""Hypergradient: the exact derivative of an outer loss through training (Wang et al. 2018, algorithm 1).

Training is a chain of positions z_0, z_1, ..., z_T, where a position is the weights and whatever the optimiser
remembers, and z_{t+1} = step(z_t, images_t, rate_t). The outer loss depends on the last weights. Walking the chain
backwards with v = dOuter/dz, one vector-Jacobian product of each step gives

    dOuter/dimages_t, dOuter/drate_t  and the next  v <- v * dz_{t+1}/dz_t .

A step is a gradient g_t and an update. Pulling v back through the update is cheap and gives, among others, the
direction u = v * dz_{t+1}/dg_t; pulling u back through the gradient is a second derivative (see `hvp`). For plain
gradient descent u = -rate_t v, and all of it is the paper's: d rate_t = -<v, g_t>,
d images_t = -rate_t d<g_t, v>/d images_t, v <- v - rate_t d<g_t, v>/d weights. Soft labels (Sucholutsky and Schonlau
2019) are differentiated as images are. A step needs nothing from the others but its position, so what is stored is a
free choice that does not change the result:

    full        every step's graph is kept from the forward walk: fastest, memory grows with T graphs.
    recompute   only positions are kept and each graph is built again: one more gradient per step.
    checkpoint  only every k-th position is kept, and each segment between two of them walked again, keeping its graphs
                if the batch is not cut into pieces: one more gradient per step, memory grows with T/k positions and k
                graphs. With pieces it is the least that can be had: nothing is kept for a piece but the one at hand.
    offload     as recompute, with the positions in host memory.

A truncated window is no storage but another derivative: the first steps are walked and not differentiated, which drops
their part of it. Where the window begins is the method's to say (`first`), and it goes with any storage.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.engine.compiled import hvp_function
from datadistill.engine.config import Engine
from datadistill.engine.functional import Network, Weights, add_to, as_leaves, batch_gradient, noise_of, pieces_of
from datadistill.engine.hvp import HVP, data_leaves, differentiate_again
from datadistill.engine.optimizers import Optimizer, UpdateVJP
from datadistill.engine.parallel import map_here, shared_out
from datadistill.engine.surrogate import widened
from datadistill.engine.unroll import InnerStep, Position, advance

_Item = TypeVar("_Item")

OuterGradient = Callable[[Weights], tuple[Float[Tensor, ""], Weights]]


@dataclass(frozen=True, eq=False)
class Hypergradient:
    """The outer loss and its derivatives.

    Attributes:
        loss: the outer loss.
        images: with respect to the images of each batch, by number, all its steps together.
        labels: with respect to the soft labels of each batch, likewise; empty where labels are class indices.
        rates: with respect to each step's learning rate, shape [T].
    """

    loss: Float[Tensor, ""]
    images: dict[int, Float[Tensor, "b c h w"]]
    labels: dict[int, Float[Tensor, "b k"]]
    rates: Float[Tensor, "t"]


def hypergradient(
    network: Network,
    optimizer: Optimizer,
    weights: Weights,
    steps: Sequence[InnerStep],
    outer: OuterGradient,
    engine: Engine,
    surrogate_width: float = 0.0,
    first: int = 0,
) -> Hypergradient:
    """Train on the steps, take the outer loss at the end, and differentiate it through all of it.

    Args:
        network: what is trained.
        optimizer: how.
        weights: initial weights.
        steps: at least one step.
        outer: called with the final weights; returns the outer loss and its gradient with respect to them.
        engine: how, with nothing left to be chosen.
        surrogate_width: 0 for the exact derivative, which exists almost everywhere; more to count the jumps of ReLU's
            derivative too, spread over this width (see `surrogate`). The outer loss itself does not depend on it.
        first: the first step that is differentiated; those before it are walked, and get zeros.

    Source: Wang et al. 2018, section 3.1 and algorithm 1; their code keeps all graphs, as `full` does. Checkpoints:
    Griewank and Walther 2000. Window: Feng et al. 2023, "Embarrassingly simple dataset distillation", section 3.
    """
    if not engine.is_settled:
        raise ValueError(f"something is still to be chosen: {engine}")
    if not 0 <= first < len(steps):
        raise ValueError(f"step {first} of {len(steps)} steps is to be the first that is differentiated")
    walk = partial(_advance, network, optimizer, steps, engine.inner_chunk)
    position = Position(weights, optimizer.init(weights))
    for index in range(first):
        position = walk(position, index)
    tape = _TAPES.get(engine.storage, _All)(network, optimizer, steps, engine, surrogate_width)
    for index in range(first, len(steps)):
        position = tape.forward(position, index)
    loss, v_weights = outer(position.weights)
    v = Position(v_weights, {name: torch.zeros_like(tensor) for name, tensor in position.state.items()})
    del position

    images, labels = dict[int, Tensor](), dict[int, Tensor]()
    rates = torch.zeros_like(torch.stack([step.rate.detach() for step in steps]))
    for index in reversed(range(first, len(steps))):
        v, d_images, d_labels, rates[index] = tape.vjp(v, index)
        batch = steps[index].batch
        images[batch] = images[batch].add_(d_images) if batch in images else d_images
        if d_labels is not None:
            labels[batch] = labels[batch].add_(d_labels) if batch in labels else d_labels
    for step in steps[:first]:
        images.setdefault(step.batch, torch.zeros_like(step.images))
    return Hypergradient(loss.detach(), images, labels, rates)


def spacing_of(engine: Engine, count: int) -> int:
    """Steps between two kept inner states of storage `checkpoint`."""
    return engine.every or max(1, math.isqrt(count))


def _advance(
    network: Network, optimizer: Optimizer, steps: Sequence[InnerStep], chunk: int, position: Position, index: int
) -> Position:
    return advance(network, optimizer, position, steps[index], index, chunk)


class _StepVJP(NamedTuple):
    """Derivatives at the start of a step, and with respect to what it used."""

    v: Position
    images: Tensor
    labels: Tensor | None
    rate: Tensor


class _Tape(Protocol):
    """Tape: inner states of the forward pass, kept for the backward pass."""

    def __init__(
        self, network: Network, optimizer: Optimizer, steps: Sequence[InnerStep], engine: Engine, surrogate_width: float
    ) -> None: ...

    def forward(self, position: Position, index: int) -> Position:
        """Take step `index` from here."""
        ...

    def vjp(self, v: Position, index: int) -> _StepVJP:
        """V at the end of step `index` becomes v at its start, with the step's own derivatives."""
        ...


class _All:
    """Storage `recompute`: every inner state is kept."""

    def __init__(
        self, network: Network, optimizer: Optimizer, steps: Sequence[InnerStep], engine: Engine, surrogate_width: float
    ) -> None:
        self.network, self.optimizer, self.steps, self.engine = network, optimizer, steps, engine
        self.surrogate_width = surrogate_width
        self.kept: dict[int, Position] = {}

    def forward(self, position: Position, index: int) -> Position:
        self.keep(position, index)
        return self.advance(position, index)

    def vjp(self, v: Position, index: int) -> _StepVJP:
        position, step = self.recall(index), self.steps[index]
        rate = step.rate.detach()
        tangent = self.optimizer.tangent(v.weights, v.state, rate)
        if tangent is None:
            # The direction depends on the gradient, which has to be known first.
            chunk = self.engine.inner_chunk
            _, gradient = batch_gradient(self.network, position.weights, step.images, step.labels, chunk, step.noise)
            update = self._through_update(v, position, gradient, index)
            hvp = self._hvp(position, step, update.gradients)
        else:
            hvp = self._hvp(position, step, tangent)
            update = self._through_update(v, position, hvp.gradient, index, tangent)
        return _joined(update, hvp)

    def keep(self, position: Position, index: int) -> None:
        self.kept[index] = position

    def recall(self, index: int) -> Position:
        return self.kept.pop(index)

    def advance(self, position: Position, index: int) -> Position:
        return _advance(self.network, self.optimizer, self.steps, self.engine.inner_chunk, position, index)

    def _through_update(
        self, v: Position, position: Position, gradient: Weights, index: int, tangent: Weights | None = None
    ) -> UpdateVJP:
        rate = self.steps[index].rate.detach()
        return self.optimizer.vjp(v.weights, v.state, position.weights, gradient, position.state, rate, index, tangent)

    def _hvp(self, position: Position, step: InnerStep, tangent: Weights) -> HVP:
        """Hessian-vector product of the whole batch, in pieces."""
        function, count = hvp_function(self.engine), len(step.labels)

        def of_piece(piece: slice) -> HVP:
            return function(
                self.network,
                position.weights,
                step.images[piece],
                step.labels[piece],
                noise_of(step.noise, piece, count),
                tangent,
                self.surrogate_width,
            )

        return _summed(of_piece, _pieces(self.network, step, self.engine.inner_chunk), step.images.device)


class _InHostMemory(_All):
    """Storage `offload`: every inner state is kept in the memory of the host."""

    def keep(self, position: Position, index: int) -> None:
        self.kept[index] = _moved(position, torch.device("cpu"))

    def recall(self, index: int) -> Position:
        return _moved(self.kept.pop(index), self.steps[index].images.device)


class _Graph(NamedTuple):
    """The gradient of a piece of a batch with its graph, and the leaves that it starts from."""

    weights: Weights
    data: tuple[Tensor, Tensor]
    gradient: Weights


class _Kept(NamedTuple):
    """A step: where it starts, its gradient, and the graphs of its pieces with their shares of it."""

    position: Position
    gradient: Weights
    graphs: list[list[tuple[float, _Graph]]]


class _Graphs:
    """Storage `full`: every step's graphs are kept, one for each piece of its batch."""

    def __init__(
        self, network: Network, optimizer: Optimizer, steps: Sequence[InnerStep], engine: Engine, surrogate_width: float
    ) -> None:
        self.network, self.optimizer, self.steps, self.surrogate_width = network, optimizer, steps, surrogate_width
        self.chunk = engine.inner_chunk
        self.kept: list[_Kept] = []

    def forward(self, position: Position, index: int) -> Position:
        step = self.steps[index]

        def graph_of(piece: slice) -> _Graph:
            leaves, data = as_leaves(position.weights), data_leaves(step.images[piece], step.labels[piece])
            noise = noise_of(step.noise, piece, len(step.labels))
            with widened(self.surrogate_width), torch.enable_grad():
                _, gradient = self.network.gradient(leaves, *data, create_graph=True, noise=noise)
            return _Graph(leaves, data, gradient)

        def walked(pieces: list[tuple[float, slice]]) -> tuple[list[tuple[float, _Graph]], Weights]:
            graphs, gradient = list[tuple[float, _Graph]](), Weights()
            for share, piece in pieces:
                graph = graph_of(piece)
                graphs.append((share, graph))
                for name, term in graph.gradient.items():  # which the graph needs as it is
                    term = term.detach()
                    if name in gradient:
                        gradient[name].add_(term, alpha=share)
                    else:
                        gradient[name] = term if share == 1 else term * share
            return graphs, gradient

        parts = map_here(walked, _pieces(self.network, step, self.chunk), step.images.device)
        graphs, gradients = [found for found, _ in parts], [found for _, found in parts]
        for gradient in gradients[1:]:
            add_to(gradients[0], gradient, 1.0)
        self.kept.append(_Kept(position, gradients[0], graphs))
        rate = step.rate.detach()
        return Position(*self.optimizer.update(position.weights, gradients[0], position.state, rate, index))

    def vjp(self, v: Position, index: int) -> _StepVJP:
        position, gradient, graphs = self.kept.pop()
        rate, device = self.steps[index].rate.detach(), self.steps[index].images.device
        update = self.optimizer.vjp(v.weights, v.state, position.weights, gradient, position.state, rate, index)
        return _joined(update, _summed(lambda graph: differentiate_again(*graph, update.gradients), graphs, device))


class _Some:
    """Storage `checkpoint`: every k-th inner state is kept; a segment is walked again, with a tape of its own."""

    def __init__(
        self, network: Network, optimizer: Optimizer, steps: Sequence[InnerStep], engine: Engine, surrogate_width: float
    ) -> None:
        self.engine, self.count = engine, len(steps)
        largest = max(len(step.labels) for step in steps)
        whole = engine.inner_chunk == 0 or engine.inner_chunk >= largest
        tape = _Graphs if whole and engine.can_keep_graphs else _All
        self.segment: _Tape = tape(network, optimizer, steps, engine, surrogate_width)
        self.walk = partial(_advance, network, optimizer, steps, engine.inner_chunk)
        self.kept: dict[int, Position] = {}
        self.first = len(steps)

    def forward(self, position: Position, index: int) -> Position:
        if not self.kept or index % spacing_of(self.engine, self.count) == 0:
            self.kept[index] = position
        return self.walk(position, index)

    def vjp(self, v: Position, index: int) -> _StepVJP:
        if index < self.first:
            self.first, position = self.kept.popitem()
            for t in range(self.first, index + 1):
                position = self.segment.forward(position, t)
        return self.segment.vjp(v, index)


_TAPES: dict[str, type[_Tape]] = {"full": _Graphs, "checkpoint": _Some, "offload": _InHostMemory}


def _pieces(network: Network, step: InnerStep, chunk: int) -> list[list[tuple[float, slice]]]:
    """Pieces of a step's batch with their shares of the images, in a group for each core."""
    count = len(step.labels)
    pieces = [((piece.stop - piece.start) / count, piece) for piece in pieces_of(network, count, chunk)]
    return shared_out(pieces, step.images.device)


def _summed(function: Callable[[_Item], HVP], groups: list[list[tuple[float, _Item]]], device: torch.device) -> HVP:
    """Hessian-vector product of a batch from those of its pieces: every part of it is a mean over images."""

    def part(pieces: list[tuple[float, _Item]]) -> tuple[Weights, Weights, list[tuple[Tensor, ...]]]:
        gradient, weights, data = Weights(), Weights(), list[tuple[Tensor, ...]]()
        for share, item in pieces:
            found = function(item)
            add_to(gradient, found.gradient, share)
            add_to(weights, found.weights, share)
            of_data = (found.images,) if found.labels is None else (found.images, found.labels)
            data.append(of_data if share == 1 else tuple(tensor * share for tensor in of_data))
        return gradient, weights, data

    parts = map_here(part, groups, device)
    for gradient, weights, _ in parts[1:]:
        add_to(parts[0][0], gradient, 1.0)
        add_to(parts[0][1], weights, 1.0)
    by_piece = [of_data for _, _, data in parts for of_data in data]
    images, *labels = (t[0] if len(t) == 1 else torch.cat(t) for t in zip(*by_piece, strict=True))
    return HVP(parts[0][0], parts[0][1], images, labels[0] if labels else None)


def _joined(update: UpdateVJP, hvp: HVP) -> _StepVJP:
    """What reaches the start of a step through its update and through its gradient."""
    weights = {name: direct + hvp.weights[name] for name, direct in update.weights.items()}
    return _StepVJP(Position(weights, update.state), hvp.images, hvp.labels, update.rate)


def _moved(position: Position, device: torch.device) -> Position:
    def moved(tensor: Tensor) -> Tensor:
        if tensor.is_cuda and device.type == "cpu":  # into pinned memory, which the device reaches without waiting
            return torch.empty_like(tensor, device=device, pin_memory=True).copy_(tensor, non_blocking=True)
        return tensor.to(device, non_blocking=tensor.is_pinned())

    weights, state = ({name: moved(tensor) for name, tensor in part.items()} for part in position)
    return Position(weights, state)

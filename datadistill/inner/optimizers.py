"""Optimisers as pure functions of (weights, gradients, state, rate): differentiable, and nothing hidden."""

from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from datadistill.inner.functional import Weights

State: TypeAlias = dict[str, Tensor]


@runtime_checkable
class Optimizer(Protocol):
    """What the engine asks of an optimiser. State tensors are named `KIND/WEIGHT`."""

    def init(self, weights: Weights) -> State:
        """The state before the first step."""
        ...

    def update(
        self, weights: Weights, gradients: Weights, state: State, rate: Tensor | float, step: int
    ) -> tuple[Weights, State]:
        """New weights and new state; `step` counts from 0. Nothing is changed in place."""
        ...


@dataclass(frozen=True)
class SGD:
    """Gradient descent, with classical momentum if it is not 0.

    Attributes:
        momentum: share of the last update direction that is kept.
    """

    momentum: float = 0.0

    def init(self, weights: Weights) -> State:
        if self.momentum == 0:
            return {}
        return {f"momentum/{name}": torch.zeros_like(weight) for name, weight in weights.items()}

    def update(
        self, weights: Weights, gradients: Weights, state: State, rate: Tensor | float, step: int
    ) -> tuple[Weights, State]:
        if self.momentum == 0:
            return {name: weight - rate * gradients[name] for name, weight in weights.items()}, state
        moved = {f"momentum/{name}": self.momentum * state[f"momentum/{name}"] + gradients[name] for name in weights}
        return {name: weight - rate * moved[f"momentum/{name}"] for name, weight in weights.items()}, moved


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1).

    Attributes:
        betas: decay of the first and second moment.
        eps: added to the square root of the second moment.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def init(self, weights: Weights) -> State:
        kinds = ("first", "second")
        return {f"{kind}/{name}": torch.zeros_like(w) for kind in kinds for name, w in weights.items()}

    def update(
        self, weights: Weights, gradients: Weights, state: State, rate: Tensor | float, step: int
    ) -> tuple[Weights, State]:
        b1, b2 = self.betas
        new_weights: Weights = {}
        new_state: State = {}
        for name, weight in weights.items():
            gradient = gradients[name]
            first = b1 * state[f"first/{name}"] + (1 - b1) * gradient
            second = b2 * state[f"second/{name}"] + (1 - b2) * gradient**2
            direction = first / (1 - b1 ** (step + 1))
            scale = _root(second / (1 - b2 ** (step + 1))) + self.eps
            new_weights[name] = weight - rate * direction / scale
            new_state |= {f"first/{name}": first, f"second/{name}": second}
        return new_weights, new_state


def _root(values: Tensor) -> Tensor:
    """The square root, with derivative zero at zero: weights that never get a gradient stay there, not at NaN."""
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1.0).sqrt(), 0.0)

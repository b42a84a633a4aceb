"""Optimisers as pure functions of (weights, gradients, state, rate), with their derivatives. Nothing is hidden."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.engine.functional import Weights

State: TypeAlias = dict[str, Tensor]

_MOMENTS = ("first", "second")


class UpdateVJP(NamedTuple):
    """Vector-Jacobian product of an update: derivatives with respect to its inputs.

    Attributes:
        weights: before the update, with the gradients held fixed.
        state: before the update.
        gradients: of the inner loss.
        rate: the learning rate.
    """

    weights: Weights
    state: State
    gradients: Weights
    rate: Float[Tensor, ""]


@runtime_checkable
class Optimizer(Protocol):
    """Interface of inner optimisers. State tensors are named `KIND/WEIGHT`."""

    def init(self, weights: Weights) -> State:
        """The state before the first step."""
        ...

    def update(
        self, weights: Weights, gradients: Weights, state: State, rate: Tensor | float, step: int
    ) -> tuple[Weights, State]:
        """New weights and new state; `step` counts from 0. Nothing is changed in place."""
        ...

    def tangent(self, v_weights: Weights, v_state: State, rate: Tensor) -> Weights | None:
        """`vjp(...).gradients` where it does not depend on the gradients; None where it does."""
        ...

    def vjp(
        self,
        v_weights: Weights,
        v_state: State,
        weights: Weights,
        gradients: Weights,
        state: State,
        rate: Tensor,
        step: int,
        tangent: Weights | None = None,
    ) -> UpdateVJP:
        """The vector-Jacobian product of `update`: derivatives at its end become derivatives at its start.

        What `tangent` returned may be handed on, where it is known already.
        """
        ...


@dataclass(frozen=True)
class SGD:
    """Gradient descent, with classical momentum and weight decay where they are not 0.

    Attributes:
        momentum: share of the last update direction that is kept.
        weight_decay: this share of the weights is added to their gradient.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0

    def init(self, weights: Weights) -> State:
        if self.momentum == 0:
            return {}
        return {f"momentum/{name}": torch.zeros_like(weight) for name, weight in weights.items()}

    def update(
        self, weights: Weights, gradients: Weights, state: State, rate: Tensor | float, step: int
    ) -> tuple[Weights, State]:
        gradients, back = _decayed(weights, gradients, self.weight_decay), -rate
        if self.momentum == 0:
            return {name: _plus(weight, back, gradients[name]) for name, weight in weights.items()}, state
        moved = {f"momentum/{name}": self.momentum * state[f"momentum/{name}"] + gradients[name] for name in weights}
        return {name: _plus(weight, back, moved[f"momentum/{name}"]) for name, weight in weights.items()}, moved

    def tangent(self, v_weights: Weights, v_state: State, rate: Tensor) -> Weights:
        back = -rate
        if self.momentum == 0:
            return {name: back * v for name, v in v_weights.items()}
        return {name: v_state[f"momentum/{name}"] + back * v for name, v in v_weights.items()}

    def vjp(
        self,
        v_weights: Weights,
        v_state: State,
        weights: Weights,
        gradients: Weights,
        state: State,
        rate: Tensor,
        step: int,
        tangent: Weights | None = None,
    ) -> UpdateVJP:
        moved = _decayed(weights, gradients, self.weight_decay)
        if self.momentum != 0:
            moved = {name: self.momentum * state[f"momentum/{name}"] + g for name, g in moved.items()}
        tangent = tangent or self.tangent(v_weights, v_state, rate)
        return UpdateVJP(
            weights=_decayed(tangent, v_weights, self.weight_decay),
            state={key: self.momentum * tangent[key.removeprefix("momentum/")] for key in v_state},
            gradients=tangent,
            rate=-torch.stack([torch.dot(v.flatten(), moved[name].flatten()) for name, v in v_weights.items()]).sum(),
        )


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1).

    Attributes:
        betas: decay of the first and second moment.
        eps: added to the square root of the second moment.
        weight_decay: this share of the weights is added to their gradient.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def init(self, weights: Weights) -> State:
        return {f"{kind}/{name}": torch.zeros_like(w) for kind in _MOMENTS for name, w in weights.items()}

    def update(
        self, weights: Weights, gradients: Weights, state: State, rate: Tensor | float, step: int
    ) -> tuple[Weights, State]:
        b1, b2 = self.betas
        gradients = _decayed(weights, gradients, self.weight_decay)
        # As one long weight: tens of small ones would take longer to name than to compute.
        gradient = _flat({name: gradients[name] for name in weights})
        first, second = (_flat({name: state[f"{kind}/{name}"] for name in weights}) for kind in _MOMENTS)
        first = b1 * first + (1 - b1) * gradient
        second = b2 * second + (1 - b2) * gradient**2
        direction = first / (1 - b1 ** (step + 1))
        scale = _root(second / (1 - b2 ** (step + 1))) + self.eps
        moved = _like(weights, _flat(weights) - rate * direction / scale)
        moments = zip(_MOMENTS, (_like(weights, first), _like(weights, second)), strict=True)
        # Weights each by themselves: how a matrix product rounds may go by where they begin.
        return (
            {name: weight.clone() for name, weight in moved.items()},
            {f"{kind}/{name}": part for kind, parts in moments for name, part in parts.items()},
        )

    def tangent(self, v_weights: Weights, v_state: State, rate: Tensor) -> None:
        return None

    def vjp(
        self,
        v_weights: Weights,
        v_state: State,
        weights: Weights,
        gradients: Weights,
        state: State,
        rate: Tensor,
        step: int,
        tangent: Weights | None = None,
    ) -> UpdateVJP:
        # As one long weight: tens of small ones would take longer to name than to compute.
        moments = [{name: part[f"{kind}/{name}"] for name in weights} for kind in _MOMENTS for part in (state, v_state)]
        first, v_first, second, v_second = map(_flat, moments)
        inputs = [_flat(weights), first, second, _flat({name: gradients[name] for name in weights}), rate]
        w, m1, m2, g, leaf = (tensor.detach().requires_grad_() for tensor in inputs)
        with torch.enable_grad():
            ends, moved = self.update({"": w}, {"": g}, {"first/": m1, "second/": m2}, leaf, step)
        vectors = [_flat({name: v_weights[name] for name in weights}), v_first, v_second]
        found = torch.autograd.grad([ends[""], moved["first/"], moved["second/"]], [w, m1, m2, g, leaf], vectors)
        d_weights, d_first, d_second, d_gradients = (_like(weights, flat) for flat in found[:4])
        d_state = {f"first/{name}": v for name, v in d_first.items()}
        d_state |= {f"second/{name}": v for name, v in d_second.items()}
        return UpdateVJP(weights=d_weights, state=d_state, gradients=d_gradients, rate=found[4])


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2, as PyTorch has it).

    Attributes:
        weight_decay: this share of the weights, times the learning rate, is taken from them before Adam's step.
    """

    weight_decay: float = 0.01

    def update(
        self, weights: Weights, gradients: Weights, state: State, rate: Tensor | float, step: int
    ) -> tuple[Weights, State]:
        kept = {name: weight * (1 - rate * self.weight_decay) for name, weight in weights.items()}
        return Adam(self.betas, self.eps).update(kept, gradients, state, rate, step)


def _flat(tensors: Weights) -> Float[Tensor, "n"]:
    """All of them in a row."""
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def _like(weights: Weights, flat: Float[Tensor, "n"]) -> Weights:
    """What `_flat` put in a row, in the shapes of weights."""
    parts = torch.split(flat, [weight.numel() for weight in weights.values()])
    return {name: part.view_as(weight) for (name, weight), part in zip(weights.items(), parts, strict=True)}


def _decayed(weights: Weights, gradients: Weights, decay: float) -> Weights:
    """`gradients + decay * weights`."""
    if decay == 0:
        return gradients
    return {name: torch.add(gradient, weights[name], alpha=decay) for name, gradient in gradients.items()}


def _plus(weight: Tensor, rate: Tensor | float, direction: Tensor) -> Tensor:
    """`weight + rate * direction` in one pass: large layers take as long as their memory does."""
    if isinstance(rate, Tensor):
        return torch.addcmul(weight, direction, rate)
    return torch.add(weight, direction, alpha=rate)


def _root(values: Tensor) -> Tensor:
    """The square root, with derivative zero at zero: weights that never get a gradient stay there, not at NaN."""
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1.0).sqrt(), 0.0)

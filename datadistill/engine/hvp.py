"""Hessian-vector products of an inner step, in three modes: how its gradient changes along a direction.

For the gradient g(w, x, y) of the inner loss and a direction u, every function here gives d<g, u>/dw, d<g, u>/dx, for
soft labels d<g, u>/dy, and g itself, which each of them meets on the way.

    reverse     builds the graph of g and differentiates <g, u> through it, backwards a second time.
    forward     pushes u through the computation of g (Pearlmutter 1994): d<g, u>/dw = d/dr g(w + r u, x), and by the
                symmetry of second derivatives d<g, u>/dx = d/dr dL/dx (w + r u, x). It needs no second-order graph.
    difference  takes that derivative along r as a central difference. Approximate: see `_step_size`. Not for ReLU or
                max pooling: a step across a jump of the gradient counts the jump, divided by the length of the step.
"""

import importlib
import threading
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.engine.functional import Network, Noise, Weights, as_leaves
from datadistill.engine.losses import Labels
from datadistill.engine.surrogate import widened

_ONE_AT_A_TIME = threading.Lock()


class HVP(NamedTuple):
    """Hessian-vector product of an inner step with a direction u.

    Attributes:
        gradient: g, the gradient of the inner loss.
        weights: d<g, u>/dw.
        images: d<g, u>/dx.
        labels: d<g, u>/dy of soft labels; None for class indices.
    """

    gradient: Weights
    weights: Weights
    images: Float[Tensor, "b c h w"]
    labels: Float[Tensor, "b k"] | None


HVPFunction = Callable[[Network, Weights, Tensor, Tensor, Noise | None, Weights, float], HVP]


def reverse(
    network: Network,
    weights: Weights,
    images: Float[Tensor, "b c h w"],
    labels: Labels,
    noise: Noise | None,
    tangent: Weights,
    surrogate_width: float,
) -> HVP:
    """Reverse over reverse."""
    leaves, data = as_leaves(weights), data_leaves(images, labels)
    with widened(surrogate_width), torch.enable_grad():
        _, gradient = network.gradient(leaves, *data, create_graph=True, noise=noise)
    return differentiate_again(leaves, data, gradient, tangent)


def data_leaves(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images, and labels if they are soft, as leaves that require gradients."""
    return images.detach().requires_grad_(), labels.detach().requires_grad_(labels.is_floating_point())


def differentiate_again(leaves: Weights, data: tuple[Tensor, Tensor], gradient: Weights, tangent: Weights) -> HVP:
    """Hessian-vector product from a gradient that still has its graph.

    Every leaf takes part in every step, so a leaf that autograd finds unused is an error and is raised, never a silent
    zero.
    """
    wanted = [*leaves.values(), *(tensor for tensor in data if tensor.requires_grad)]
    found = iter(torch.autograd.grad(list(gradient.values()), wanted, [tangent[name] for name in gradient]))
    d_weights = {name: next(found) for name in leaves}
    return HVP({name: g.detach() for name, g in gradient.items()}, d_weights, next(found), next(found, None))


def forward(
    network: Network,
    weights: Weights,
    images: Float[Tensor, "b c h w"],
    labels: Labels,
    noise: Noise | None,
    tangent: Weights,
    surrogate_width: float,
) -> HVP:
    """Forward over reverse."""
    plain, wanted = network.plain, (0, 1, 2) if labels.is_floating_point() else (0, 1)

    def gradient(at: Weights) -> tuple[Any, ...]:
        return torch.func.grad(lambda w, x, y: plain.loss(w, x, y, noise), argnums=wanted)(at, images, labels)  # type: ignore[no-any-return]

    _load_rules()
    # PyTorch counts its levels of forward derivatives for the whole process, not for each thread.
    with _ONE_AT_A_TIME, widened(surrogate_width):
        (found, *_), (d_weights, d_images, *d_labels) = torch.func.jvp(gradient, (weights,), (tangent,))  # type: ignore[misc]
    return HVP(found, d_weights, d_images, d_labels[0] if d_labels else None)


@cache
def _load_rules() -> None:
    """Load PyTorch's rules for forward derivatives, which warn of a deprecation of their own."""
    with warnings.catch_warnings(action="ignore"):  # a FutureWarning from PyTorch 2.14 on
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def difference(
    network: Network,
    weights: Weights,
    images: Float[Tensor, "b c h w"],
    labels: Labels,
    noise: Noise | None,
    tangent: Weights,
    surrogate_width: float,
) -> HVP:
    """A central difference of two gradients. What `surrogate_width` asks for is beyond it, and left out."""
    size = _step_size(weights, tangent)

    def gradient(sign: int) -> tuple[Weights, list[Tensor]]:
        leaves = as_leaves({name: weight + sign * size * tangent[name] for name, weight in weights.items()})
        data = data_leaves(images, labels)
        with torch.enable_grad():
            loss = network.loss(leaves, *data, noise)
        wanted = [*leaves.values(), *(tensor for tensor in data if tensor.requires_grad)]
        found = torch.autograd.grad(loss, wanted)
        return dict(zip(leaves, found, strict=False)), list(found[len(leaves) :])

    (ahead, data_ahead), (behind, data_behind) = gradient(1), gradient(-1)
    d_images, *d_labels = ((a - b) / (2 * size) for a, b in zip(data_ahead, data_behind, strict=True))
    return HVP(
        {name: (ahead[name] + behind[name]) / 2 for name in ahead},
        {name: (ahead[name] - behind[name]) / (2 * size) for name in ahead},
        d_images,
        d_labels[0] if d_labels else None,
    )


def _step_size(weights: Weights, tangent: Weights) -> float:
    """The step, relative to |w| / |u|: a tenth of the root of eps.

    The third derivative would allow eps^(1/3), but gradients of networks curve sharply: measured on networks with
    smooth activations in float32, the error falls until 3e-5 and rises from 1e-5 on, where rounding takes over. A
    direction of length 0 may be walked any way.
    """
    squares = [float(sum(t.double().square().sum() for t in part.values())) for part in (weights, tangent)]
    eps = max(torch.finfo(weight.dtype).eps for weight in weights.values())
    return float(0.1 * (eps * squares[0] / squares[1]) ** 0.5) if squares[1] > 0 and squares[0] > 0 else 1.0


HVP_FUNCTIONS: dict[str, HVPFunction] = {"reverse": reverse, "forward": forward, "difference": difference}

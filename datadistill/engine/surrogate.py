"""Surrogate gradients: the jumps of a piecewise-linear network's gradient, which an exact derivative does not see.

A step of training moves the weights by the gradient, and through ReLU that gradient contains the step function
1[z > 0]. As the distilled images change, z crosses zero and the gradient jumps, and with it the weights and the outer
loss. Automatic differentiation takes the derivative almost everywhere, where a step function is flat, so it never sees
those jumps: it is the exact derivative of each smooth piece but not of the trend across pieces, and where a few large
gradient steps do all the training, the jumps are much of the trend.

Here the step function keeps its value and gets a derivative all the same: its distributional derivative, Dirac's
delta at z = 0, spread over a triangle of area 1 and half-width `width`. Losses, gradients and trained weights stay
exactly what they were; only the derivative of the gradient with respect to z gains a term. For width -> 0 that term
vanishes almost everywhere. Spiking networks are trained by the same device, there for the first derivative (Neftci,
Mostafa and Zenke, "Surrogate Gradient Learning in Spiking Neural Networks", 2019).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from datadistill.engine.functional import Network
from datadistill.engine.overrides import Replaced


class _Step(torch.autograd.Function):
    """1[z > 0], whose derivative is a triangle of area 1 around zero."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.width = width
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        triangle = (1 - z.abs() / ctx.width).clamp_min(0) / ctx.width
        return gradients[0] * triangle, None


class _ReLU(torch.autograd.Function):
    """max(z, 0), whose derivative is `_Step`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.width = width
        return z.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return gradients[0] * _Step.apply(z, ctx.width), None  # type: ignore[no-untyped-call,unused-ignore]


_IN_PLACE = (F.relu_, torch.relu_, Tensor.relu_)
_RELUS = (F.relu, torch.relu, Tensor.relu, *_IN_PLACE)


def _wide(width: float, always_in_place: bool) -> Callable[..., Tensor]:
    def relu(input: Tensor, inplace: bool = False) -> Tensor:
        in_place = inplace or always_in_place
        value: Tensor = _ReLU.apply(input.clone() if in_place else input, width)  # type: ignore[no-untyped-call,unused-ignore]
        return input.copy_(value) if in_place else value

    return relu


def widened(width: float) -> AbstractContextManager[Any]:
    """A context in which ReLU's jump in slope counts over `width` on either side; 0 changes nothing.

    Only `relu` is known, called in any way; leaky ReLU and max pooling keep the derivative almost everywhere.
    """
    return Replaced({relu: _wide(width, relu in _IN_PLACE) for relu in _RELUS}) if width > 0 else nullcontext()


_WITH_KINKS = {"relu", "leaky_relu", "rrelu", "relu6", "hardtanh", "threshold", "max_pool2d", "amax", "clamp_min"}


def kinks_of(network: Network, image: Float[Tensor, "1 c h w"]) -> list[str]:
    """Names of the functions that are not smooth, such as ReLU and max pooling, that a network calls."""
    seen: set[str] = set()

    class Listening(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            seen.add(getattr(func, "__name__", "").strip("_"))
            return func(*args, **(kwargs or {}))

    weights = {name: parameter.detach() for name, parameter in network.module.named_parameters()}
    with torch.no_grad(), Listening():
        Network(network.module).logits(weights, torch.cat([image, image]).to(next(iter(weights.values())).dtype))
    return sorted(seen & _WITH_KINKS)

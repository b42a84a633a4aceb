"""Layers that call our operations where these apply, and PyTorch's elsewhere."""

import itertools
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEW_CHANNELS, _SOME_CHANNELS = 4, 16
_SMALL_BATCH = 16
_SMALL_PRODUCT = 1 << 20
"""Multiplications below which PyTorch takes longer to keep a matrix product's graph than to compute it."""


def fitted(module: nn.Module, operations: Collection[str]) -> nn.Module:
    """The same module, its layers changed in place to call these operations, which must have been loaded."""
    kinds: dict[type[nn.Module], type[nn.Module]] = {}
    if "linear" in operations:
        kinds[nn.Linear] = _Linear
    if "max-pooling" in operations:
        kinds[nn.MaxPool2d] = _MaxPool2d
    if "normalisation" in operations:
        kinds |= {nn.GroupNorm: _GroupNorm, nn.Sequential: _Sequential}
    if operations:
        kinds[nn.Conv2d] = _Conv2d
    for layer in module.modules():
        other = kinds.get(type(layer))
        if other is not None:
            layer.__class__ = other
        if isinstance(layer, _Conv2d):
            layer.operations = frozenset(operations)
    for sequence in module.modules():
        if isinstance(sequence, _Sequential):
            for layer, following in itertools.pairwise(sequence):
                if isinstance(layer, _Conv2d) and isinstance(following, _GroupNorm):
                    layer.is_normalised = True
    return module


class _Conv2d(nn.Conv2d):
    operations: frozenset[str] = frozenset()
    is_normalised = False
    """Whether the answer is to have channels as its innermost dimension in memory, as normalisation reads it."""

    def is_ours(self, images: int) -> bool:
        """Whether so many images are convolved by our operation."""
        few = min(self.in_channels, self.out_channels)
        return (
            self.is_normalised
            or (few <= _FEW_CHANNELS and "few-channels" in self.operations)
            or (
                few < _SOME_CHANNELS
                and ("small-batch" if images <= _SMALL_BATCH else "some-channels") in self.operations
            )
        )

    def forward(self, input: Tensor) -> Tensor:
        if (
            input.dim() != 4
            or not self.is_ours(input.shape[0])
            or isinstance(self.padding, str)
            or self.padding_mode != "zeros"
            or self.stride != (1, 1)
            or self.dilation != (1, 1)
            or self.groups != 1
            or self.kernel_size == (1, 1)
            or not _is_plain(input)
            or input.shape[1] != self.in_channels
            or self.weight.dtype != torch.float32
            or any(n + 2 * p < k for n, p, k in zip(input.shape[2:], self.padding, self.kernel_size, strict=True))
        ):
            return super().forward(input)
        return torch.ops.datadistill.conv2d.default(  # type: ignore[no-any-return]
            input, self.weight, self.bias, *self.padding, self.is_normalised
        )


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if (
            not _is_plain(input, 2)
            or input.shape[0] * self.weight.numel() > _SMALL_PRODUCT
            or input.shape[1] != self.in_features
            or self.weight.dtype != torch.float32
        ):
            return super().forward(input)
        return torch.ops.datadistill.linear.default(input, self.weight, self.bias)  # type: ignore[no-any-return]


class _MaxPool2d(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Any:
        kernel, stride, padding = _pair(self.kernel_size), _pair(self.stride), _pair(self.padding)
        if (
            not _is_plain(input)
            or stride != (2, 2)
            or any(one != other for one, other in (kernel, padding))
            or _pair(self.dilation) != (1, 1)
            or self.ceil_mode
            or self.return_indices
            or 2 * padding[0] > kernel[0]
            or any(n + 2 * padding[0] < kernel[0] for n in input.shape[2:])
            or input.shape[2] * input.shape[3] >= 1 << 24
        ):
            return super().forward(input)
        return torch.ops.datadistill.max_pool2d.default(input, kernel[0], padding[0])


class _GroupNorm(nn.GroupNorm):
    def fits(self, input: Tensor) -> bool:
        """Whether the operation can take the place of PyTorch's."""
        return (
            _is_plain(input)
            and input.shape[1] == self.num_channels
            and (not self.affine or self.weight.dtype == input.dtype)
        )

    def fused(self, input: Tensor, relu: bool, pool: bool) -> Tensor:
        """This layer, and after it ReLU and 2x2 average pooling if asked for."""
        how = (self.num_groups, self.eps, relu, pool)
        return _Normalised.apply(input, self.weight, self.bias, how)  # type: ignore[no-untyped-call,no-any-return,unused-ignore]

    def forward(self, input: Tensor) -> Tensor:
        return self.fused(input, False, False) if self.fits(input) else super().forward(input)


class _Sequential(nn.Sequential):
    """Layers in turn, but normalisation, ReLU and 2x2 average pooling as one operation.

    Not where somebody watches what functions are called, as `surrogate.widened` does to ReLU, or hooks into a layer.
    """

    def forward(self, input: Any) -> Any:
        layers: list[Any] = list(self)
        while layers:
            norm, count = layers[0], 1
            if isinstance(norm, _GroupNorm) and not torch._C._is_torch_function_mode_enabled():
                count = 1 + _followers(layers[1:3], input)
            if count > 1 and norm.fits(input) and not any(map(_has_hooks, layers[:count])):
                input = norm.fused(input, True, count == 3)
            else:
                count, input = 1, norm(input)
            del layers[:count]
        return input


class _Normalised(torch.autograd.Function):
    """Group normalisation, and ReLU and 2x2 average pooling behind it."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor | None, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
        out, stats = torch.ops.datadistill.group_norm.default(images, weight, bias, *how)
        ctx.save_for_backward(images, weight, bias, stats)
        ctx.how = how
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, bias, stats = ctx.saved_tensors
        found = _NormalisedGradient.apply(images, gradients[0], weight, bias, stats, ctx.how)  # type: ignore[no-untyped-call,unused-ignore]
        return (*(found if weight is not None else (found[0], None, None)), None)


class _NormalisedGradient(torch.autograd.Function):
    """The gradients of images, weight and bias, from that of the answer."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, gradient: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        weight, bias, stats, how = rest
        ctx.save_for_backward(images, gradient, weight, bias, stats)
        ctx.how = how
        groups, _, relu, pool = how
        found = torch.ops.datadistill.group_norm_gradient.default(
            images, gradient, weight, bias, stats, groups, relu, pool
        )
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> tuple[Tensor | None, ...]:
        images, gradient, weight, bias, stats = ctx.saved_tensors
        groups, _, relu, pool = ctx.how
        of_weight, of_bias = along[1:] if weight is not None else (None, None)
        if torch.is_grad_enabled():  # a third derivative may follow
            found = _curvature(images, gradient, along[0], weight, bias, of_weight, of_bias, ctx.how)
        else:
            found = torch.ops.datadistill.group_norm_curvature.default(
                images, gradient, along[0], weight, bias, of_weight, of_bias, stats, groups, relu, pool
            )
        return (*found[:2], found[2] if weight is not None else None, None, None, None)


def _curvature(
    images: Tensor,
    gradient: Tensor,
    direction: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    along_weight: Tensor | None,
    along_bias: Tensor | None,
    how: tuple[Any, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    """`group_norm_curvature` from PyTorch's operations, which can be differentiated on."""
    groups, eps, relu, pool = how
    n, c, h, w = images.shape

    def grouped(tensor: Tensor) -> Tensor:
        return tensor.reshape(n, groups, c // groups, h, w)

    def by_channel(tensor: Tensor | None, otherwise: float) -> Tensor | float:
        return otherwise if tensor is None else tensor.reshape(1, groups, c // groups, 1, 1)

    def mean(tensor: Tensor) -> Tensor:
        return tensor.mean((2, 3, 4), keepdim=True)

    x, u, scale, along = grouped(images), grouped(direction), by_channel(weight, 1.0), by_channel(along_weight, 0.0)
    away = x - mean(x)
    inverse = (mean(away * away) + eps).rsqrt()
    xn = away * inverse
    open_ = (xn * scale + by_channel(bias, 0.0) > 0).to(x.dtype) if relu else 1.0
    gz = grouped(F.interpolate(gradient, scale_factor=2) / 4 if pool else gradient) * open_
    reached = gz * scale
    a, b = mean(u * xn), mean(reached * xn)
    projected = u - mean(u) - xn * a
    q = along * gz - inverse * (b * u + a * reached)
    of_images = inverse * (q - mean(q) - xn * mean(q * xn)) - inverse * inverse * mean(projected * reached) * xn
    of_gz = ((scale * inverse * projected + along * xn + by_channel(along_bias, 0.0)) * open_).reshape(images.shape)
    of_weight = (gz * inverse * projected).sum((0, 3, 4)).reshape(c)
    return of_images.reshape(images.shape), F.avg_pool2d(of_gz, 2) if pool else of_gz, of_weight


def _followers(layers: list[nn.Module], images: Any) -> int:
    """How many of these layers normalisation takes along: none, ReLU, or ReLU and pooling."""
    if not layers or type(layers[0]) is not nn.ReLU:
        return 0
    return 1 + (len(layers) > 1 and _halves(layers[1], images))


def _halves(layer: nn.Module, images: Tensor) -> bool:
    """Whether a layer takes the mean of every 2x2 pixels, and none are left over."""
    return (
        type(layer) is nn.AvgPool2d
        and _pair(layer.kernel_size) == _pair(layer.stride) == (2, 2)
        and _pair(layer.padding) == (0, 0)
        and layer.divisor_override in (None, 4)
        and all(n % 2 == 0 for n in images.shape[2:])
    )


def _has_hooks(layer: nn.Module) -> bool:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(layer, name) for name in names)


def _is_plain(images: Tensor, dimensions: int = 4) -> bool:
    """Images in float32 in a CPU's memory, whose arithmetic nobody wants in half the bits."""
    return (
        images.dtype == torch.float32
        and images.is_cpu
        and images.dim() == dimensions
        and images.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])

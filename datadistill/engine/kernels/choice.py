"""Choice of operations: those of ours that were measured, on this machine, to be right and faster."""

import copy
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from datadistill.engine.kernels.layers import fitted
from datadistill.utils.errors import unknown_name

FASTER = 0.9
"""An operation of ours must take less than this share of PyTorch's time, for every shape that is tried."""

MOST_ERROR = 1e-4
"""By which its value and both derivatives may differ from PyTorch's in double precision, relative to their length."""

_ROUNDS = 7


class Measured(NamedTuple):
    """Measurement of an operation.

    Attributes:
        ratio: its time over that of PyTorch's, value and two derivatives; the largest of all shapes.
        error: its relative difference from PyTorch's in double precision; the largest likewise.
    """

    ratio: float
    error: float

    @property
    def is_used(self) -> bool:
        """Whether it is right and faster."""
        return self.ratio < FASTER and self.error < MOST_ERROR


class _Trial(NamedTuple):
    """Layers on which an operation is tried, and the shape of their images."""

    module: Callable[[], nn.Module]
    shape: tuple[int, ...]


def _blocks(channels: int, width: int, padding: int = 1) -> Callable[[], nn.Module]:
    """Two blocks of a ConvNet."""

    def block(channels: int, padding: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, width, 3, padding=padding)
        return [convolution, nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]

    return lambda: nn.Sequential(*block(channels, padding), *block(width, 1))


def _convolution(channels: int, outputs: int, padding: int) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(channels, outputs, 5, padding=padding)


def _linear(*sizes: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*itertools.starmap(nn.Linear, itertools.pairwise(sizes)))


def _pooling(kernel: int, padding: int) -> Callable[[], nn.Module]:
    return lambda: nn.MaxPool2d(kernel, 2, padding)


_TRIALS: Mapping[str, tuple[_Trial, ...]] = {
    # The first layers of LeNet and AlexCifarNet.
    "few-channels": (
        _Trial(_convolution(1, 6, 2), (10, 1, 28, 28)),
        _Trial(_convolution(1, 6, 2), (64, 1, 28, 28)),
        _Trial(_convolution(3, 64, 2), (10, 3, 32, 32)),
    ),
    # LeNet's second, on batches of the inner loop and on pieces of a real batch.
    "small-batch": (_Trial(_convolution(6, 16, 0), (10, 6, 14, 14)),),
    "some-channels": (_Trial(_convolution(6, 16, 0), (64, 6, 14, 14)),),
    "max-pooling": (_Trial(_pooling(2, 0), (10, 6, 28, 28)), _Trial(_pooling(3, 1), (10, 64, 32, 32))),
    # LeNet's three, on batches of the inner loop.
    "linear": (_Trial(_linear(400, 120, 84, 10), (10, 400)),),
    # ConvNets of two blocks.
    "normalisation": (_Trial(_blocks(1, 64, 3), (10, 1, 28, 28)), _Trial(_blocks(3, 32), (10, 3, 16, 16))),
}
"""What each operation is tried on."""

OPERATIONS = tuple(_TRIALS)


def measure() -> dict[str, Measured]:
    """Compare every operation with PyTorch's own, on one core; the library must be loaded. Takes seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {name: _measured(name, trials) for name, trials in _TRIALS.items()}
    finally:
        torch.set_num_threads(threads)


def chosen(request: str, measured: Mapping[str, Measured]) -> tuple[str, ...]:
    """The operations that a request asks for, as far as there are any.

    Args:
        request: `auto` (those that are right and faster), `off`, `all`, or names of `OPERATIONS` separated by commas.
        measured: what was measured of each; empty where none can be had.
    """
    if request in ("auto", "all"):
        return tuple(name for name, found in measured.items() if request == "all" or found.is_used)
    return tuple(name for name in parse_kernels(request) if name in measured)


def parse_kernels(request: str) -> tuple[str, ...]:
    """The names in a request; none for `auto`, `all` and `off`.

    Raises:
        RequestError: there is no such operation.
    """
    if request in ("auto", "all", "off"):
        return ()
    names = tuple(dict.fromkeys(name.strip() for name in request.split(",")))
    for name in names:
        if name not in OPERATIONS:
            raise unknown_name("kernel", name, ("auto", "off", "all", *OPERATIONS))
    return names


def _measured(name: str, trials: Iterable[_Trial]) -> Measured:
    found = [_compared(trial, name) for trial in trials]
    return Measured(*(max(float(f"{value:.3g}") for value in values) for values in zip(*found, strict=True)))


def _compared(trial: _Trial, name: str) -> tuple[float, float]:
    draw = torch.Generator().manual_seed(0)
    module = trial.module()
    for weight in module.parameters():
        weight.data = torch.randn(weight.shape, generator=draw) / 4
    for layer in module.modules():
        if isinstance(layer, nn.GroupNorm):  # half of the ReLUs open and half closed, none near its kink
            layer.bias.data += torch.tensor([4.0, -4.0]).repeat(layer.num_channels // 2)
    images = torch.randn(trial.shape, generator=draw)
    plain, fast = module, fitted(copy.deepcopy(module), (name,))
    expected = _derivatives(copy.deepcopy(module).double(), images.double())
    # A derivative may be zero, as that of a bias before normalisation is.
    least = 1e-2 * max(float(tensor.norm()) for tensor in expected)
    error = max(
        float((one.double() - other).norm() / other.norm().clamp_min(least))
        for one, other in zip(_derivatives(fast, images), expected, strict=True)
    )
    _derivatives(plain, images)
    # In turns, and the least of each: what else the machine does only ever adds to a time.
    times = [(_seconds(fast, images), _seconds(plain, images)) for _ in range(_ROUNDS)]
    return min(ours for ours, _ in times) / min(theirs for _, theirs in times), error


def _seconds(module: nn.Module, images: Tensor) -> float:
    began = time.perf_counter()
    _derivatives(module, images)
    return time.perf_counter() - began


def _derivatives(module: nn.Module, images: Tensor) -> list[Tensor]:
    """The value, its gradient along itself, and the gradient of that, as a step of the engine takes them."""
    leaves = [images.detach().requires_grad_(), *module.parameters()]
    value = module(leaves[0])
    first = torch.autograd.grad(value, leaves, value, create_graph=True)
    second = torch.autograd.grad(first, leaves, [tensor.detach() for tensor in first])
    return [value.detach(), *(tensor.detach() for tensor in first), *second]

"""Other functions in the place of some of PyTorch's, however a module calls them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DROPOUTS: dict[Callable[..., Tensor], int | None] = {F.dropout: None, F.dropout1d: 2, F.dropout2d: 2, F.dropout3d: 2}
"""Functions and how many leading dimensions share one draw with the rest; None: every element has its own."""


class Replaced(TorchFunctionMode):
    """While entered, some of PyTorch's functions are others."""

    def __init__(self, table: dict[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self._table = table

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self._table.get(func, func)(*args, **(kwargs or {}))


def dropouts(noise: int | None, device: torch.device) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Dropout that draws from a generator of its own, or not at all."""
    generator = None if noise is None else torch.Generator(device).manual_seed(noise)

    def dropping(shared: int | None) -> Callable[..., Tensor]:
        def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
            if generator is None or not training:
                return input
            shape = input.shape if shared is None else (*input.shape[:shared], *[1] * (input.dim() - shared))
            kept = torch.rand(shape, generator=generator, device=input.device, dtype=input.dtype) >= p
            return input * kept / (1 - p) if p < 1 else input * 0

        return dropout

    return {function: dropping(shared) for function, shared in _DROPOUTS.items()}

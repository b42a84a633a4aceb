"""Overrides of PyTorch functions inside a context (`TorchFunctionMode`), however a module calls them."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from types import FunctionType
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
    """Dropout that draws from a generator of its own, or not at all; and attention, which calls it, by plain products.

    PyTorch's own kernels for attention on a CPU have no second derivative.
    """
    generator = None if noise is None else torch.Generator(device).manual_seed(noise)

    def dropping(shared: int | None) -> Callable[..., Tensor]:
        def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
            if generator is None or not training:
                return input
            shape = input.shape if shared is None else (*input.shape[:shared], *[1] * (input.dim() - shared))
            kept = torch.rand(shape, generator=generator, device=input.device, dtype=input.dtype) >= p
            return input * kept / (1 - p) if p < 1 else input * 0

        return dropout

    table: dict[Callable[..., Any], Callable[..., Any]] = {f: dropping(shared) for f, shared in _DROPOUTS.items()}
    dropout = table[F.dropout]

    attention = partial(_attention, dropout)

    def heads(*arguments: Any, **more: Any) -> Any:
        # PyTorch's function calls these two by its module's names, out of reach of a mode that has been entered.
        names = {"dropout": dropout, "scaled_dot_product_attention": attention, "has_torch_function": lambda _: False}
        function = F.multi_head_attention_forward
        own = FunctionType(function.__code__, {**function.__globals__, **names}, None, function.__defaults__)
        return own(*arguments, **more)

    return {**table, F.scaled_dot_product_attention: attention, F.multi_head_attention_forward: heads}


REPLACED = (*_DROPOUTS, F.scaled_dot_product_attention, F.multi_head_attention_forward)
"""The functions that `dropouts` has others for."""


def _attention(
    dropout: Callable[[Tensor, float], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention`, as its documentation writes it."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return dropout(scores.softmax(-1), dropout_p) @ value

"""Values as bytes and JSON, for other processes: nothing that arrives is ever executed, as a pickle is."""

import json
import sys
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Parts:
    """A value as bytes: the tensors that lie on a CPU, then JSON; and the tensors that lie on a GPU."""

    plain: Tensor
    fast: Tensor
    words: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        return len(self.plain), len(self.fast), self.words

    @classmethod
    def of(cls, value: Any) -> "Parts":
        tensors = list[Tensor]()
        words = b"" if value is None else json.dumps(_described(value, tensors)).encode()
        text = torch.frombuffer(bytearray(words + b" "), dtype=torch.uint8)[: len(words)]
        plain, fast = ([_bytes(t) for t in tensors if t.is_cuda is on_gpu] for on_gpu in (False, True))
        return cls(
            torch.cat([*plain, text]), torch.cat(fast) if fast else torch.empty(0, dtype=torch.uint8), len(words)
        )


def _bytes(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    tensor = tensor if tensor.is_cuda else tensor.cpu()
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _described(value: Any, tensors: list[Tensor]) -> Any:
    """A value as JSON, without its tensors, which are collected."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors.append(value)
        return ["tensor", str(value.dtype).removeprefix("torch."), list(value.shape), value.device.type]
    if isinstance(value, dict):
        return ["dict", *([_described(k, tensors), _described(v, tensors)] for k, v in value.items())]
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return [type(value).__name__, *(_described(entry, tensors) for entry in value)]
    names = [f.name for f in fields(value) if f.init] if is_dataclass(value) else getattr(value, "_fields", None)
    if names is None:
        raise TypeError(f"a {type(value).__name__} cannot be given to other ranks")
    kind = type(value)
    found = [[name, _described(getattr(value, name), tensors)] for name in names]
    return ["record", kind.__module__, kind.__qualname__, *found]


def value_of(plain: Tensor, fast: Tensor, words: int) -> Any:
    """The value that `Parts.of` took apart, of its bytes and the number of those of JSON."""
    described = json.loads(plain[len(plain) - words :].numpy().tobytes()) if words else None
    places = [0, 0]

    def tensor(dtype: str, shape: list[int], device: str) -> Tensor:
        kind: torch.dtype = getattr(torch, dtype)
        source, which = (fast, 1) if device == "cuda" else (plain, 0)
        size = torch.Size(shape).numel() * kind.itemsize
        piece = source[places[which] : places[which] + size]
        places[which] += size
        # Copied, because a piece of bytes may begin where a number may not.
        found = piece.clone().view(kind).view(shape)
        return found if device in ("cpu", "cuda") else found.to(device)

    def made(entry: Any) -> Any:
        if not isinstance(entry, list):
            return entry
        kind, *rest = entry
        if kind == "tensor":
            return tensor(*rest)
        if kind == "dict":
            return {made(key): made(value) for key, value in rest}
        if kind == "list":
            return [made(one) for one in rest]
        if kind == "tuple":
            return tuple(made(one) for one in rest)
        module, name, *values = rest
        return _record(module, name)(**{field: made(value) for field, value in values})

    return made(described)


def _record(module: str, name: str) -> Any:
    """A dataclass or named tuple that this process has loaded; nothing else is ever called."""
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part)
    if not (isinstance(found, type) and (is_dataclass(found) or hasattr(found, "_fields"))):
        raise TypeError(f"{module}.{name} is no record")
    return found

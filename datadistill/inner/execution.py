"""Other ways to run a second derivative than operation by operation: compiled, or replayed as a captured CUDA graph.

Either is built at the first call for each shape, compared there with running it eagerly, and dropped with one warning
where it fails or differs.
"""

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from datadistill.inner.engine import Engine
from datadistill.inner.functional import Network, Weights
from datadistill.inner.products import PRODUCT_FUNCTIONS, Product, ProductFunction

Flat = Callable[[list[Tensor]], list[Tensor]]

_built: WeakKeyDictionary[Network, dict[Any, Flat | None]] = WeakKeyDictionary()
_MOST_DIFFERENCE = {torch.float32: 5e-2, torch.float64: 1e-9}
"""Relative. In float32 other rounding decides a few ReLUs and maxima otherwise, which has been seen to change a product
by 1e-2; a wrong graph is wrong by its own size. In float64 there is no such excuse."""


def product_function(engine: Engine) -> ProductFunction:
    """The product that an engine asks for, run as it asks."""
    eagerly = PRODUCT_FUNCTIONS[engine.product]
    if engine.execution == "eager":
        return eagerly
    build = _compile if engine.execution == "compiled" else _capture

    def run(
        network: Network,
        weights: Weights,
        images: Tensor,
        labels: Tensor,
        noise: int | None,
        along: Weights,
        kink_width: float,
    ) -> Product:
        if network.draws:
            _warn_once(
                network, "draws", f"execution {engine.execution} cannot repeat what dropout draws; running eagerly"
            )
            return eagerly(network, weights, images, labels, noise, along, kink_width)
        names = list(weights)

        def flat(tensors: list[Tensor]) -> list[Tensor]:
            pairs = iter(tensors)
            at, direction = ({name: next(pairs) for name in names} for _ in range(2))
            found = eagerly(network, at, next(pairs), next(pairs), noise, direction, kink_width)
            last = [found.images] if found.labels is None else [found.images, found.labels]
            return [*found.gradient.values(), *found.weights.values(), *last]

        given = [*weights.values(), *(along[name] for name in names), images, labels]
        key = (engine.product, engine.execution, kink_width, tuple((t.shape, t.dtype, str(t.device)) for t in given))
        table = _built.setdefault(network, {})
        if key not in table:
            table[key] = _checked(build, flat, given, engine.execution)
        values = iter((table[key] or flat)(given))
        gradient, found = ({name: next(values) for name in names} for _ in range(2))
        return Product(gradient, found, next(values), next(values, None))

    return run


def _checked(build: Callable[[Flat, list[Tensor]], Flat], flat: Flat, given: list[Tensor], how: str) -> Flat | None:
    """The function built, if it can be and gives the same numbers."""
    expected = flat(given)
    try:
        built = build(flat, given)
        found = built(given)
    except Exception as error:  # a compiler may raise anything, and eager execution is there
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        warnings.warn(f"execution {how} failed ({reason}); running eagerly", RuntimeWarning, stacklevel=4)
        return None
    most = _MOST_DIFFERENCE.get(given[0].dtype, 5e-2)
    scale = max(float(e.norm()) for e in expected)
    difference = max(float((f - e).norm()) for f, e in zip(found, expected, strict=True)) / (scale or 1.0)
    if not difference <= most:
        text = f"execution {how} differs from running eagerly by {difference:.1e}; running eagerly"
        warnings.warn(text, RuntimeWarning, stacklevel=4)
        return None
    return built


def _compile(flat: Flat, given: list[Tensor]) -> Flat:
    """One graph of pure functions, both derivatives in it, through PyTorch's compiler."""
    graph = make_fx(flat)(given)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    compiled = torch.compile(graph)

    def run(tensors: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(compiled([tensor.detach() for tensor in tensors]))

    return run


def _capture(flat: Flat, given: list[Tensor]) -> Flat:
    """All kernel launches of one call, recorded and launched again as one."""
    if given[0].device.type != "cuda":
        raise ValueError("a graph can be captured on a CUDA device alone")
    inputs = [tensor.detach().clone() for tensor in given]
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            flat(inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = flat(inputs)

    def run(tensors: list[Tensor]) -> list[Tensor]:
        for to, tensor in zip(inputs, tensors, strict=True):
            to.copy_(tensor)
        graph.replay()
        return [output.clone() for output in outputs]

    return run


def _warn_once(network: Network, key: str, text: str) -> None:
    table = _built.setdefault(network, {})
    if key not in table:
        table[key] = None
        warnings.warn(text, RuntimeWarning, stacklevel=3)

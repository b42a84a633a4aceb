"""Execution other than eager: compiled, or replayed as a captured CUDA graph.

Either is built at the first call for each shape, compared there with running it eagerly, and dropped with one warning
where it fails or differs. What is compiled is a second derivative; what is captured, a whole outer step
(`cuda_graph`).
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from datadistill.engine.config import Engine
from datadistill.engine.functional import Network, Noise, Weights
from datadistill.engine.hvp import HVP, HVP_FUNCTIONS, HVPFunction
from datadistill.utils.errors import brief
from datadistill.utils.runtime import is_out_of_memory

Flat = Callable[[list[Tensor]], list[Tensor]]

_built: WeakKeyDictionary[Network, dict[Any, Flat | None]] = WeakKeyDictionary()
_MOST_DIFFERENCE = {torch.float32: 5e-2, torch.float64: 1e-9}
"""Relative error of a Hessian-vector product. In float32 other rounding decides a few ReLUs and maxima otherwise, which
has been seen to change one by 1e-2; a wrong graph is wrong by its own size. In float64 there is no such excuse."""

_MOST_GRAPHS = 4
"""Of one network: each holds the memory of a whole outer step."""


def hvp_function(engine: Engine) -> HVPFunction:
    """The Hessian-vector product that an engine asks for, run as it asks."""
    eagerly = HVP_FUNCTIONS[engine.hvp]
    if engine.execution != "compiled":
        return eagerly

    def run(
        network: Network,
        weights: Weights,
        images: Tensor,
        labels: Tensor,
        noise: Noise | None,
        tangent: Weights,
        surrogate_width: float,
    ) -> HVP:
        if network.draws:
            warn_once(network, "draws", "execution compiled cannot repeat what dropout draws; running eagerly")
            return eagerly(network, weights, images, labels, noise, tangent, surrogate_width)
        names = list(weights)

        def flat(tensors: list[Tensor]) -> list[Tensor]:
            pairs = iter(tensors)
            at, direction = ({name: next(pairs) for name in names} for _ in range(2))
            found = eagerly(network, at, next(pairs), next(pairs), noise, direction, surrogate_width)
            last = [found.images] if found.labels is None else [found.images, found.labels]
            return [*found.gradient.values(), *found.weights.values(), *last]

        given = [*weights.values(), *(tangent[name] for name in names), images, labels]
        key = (engine.hvp, surrogate_width, _shapes(given))
        table = _built.setdefault(network, {})
        if key not in table:
            table[key] = _checked(_compile, flat, given, engine.execution)
        values = iter((table[key] or flat)(given))
        gradient, found = ({name: next(values) for name in names} for _ in range(2))
        return HVP(gradient, found, next(values), next(values, None))

    return run


def replayed(network: Network, key: Any, flat: Flat, given: list[Tensor]) -> list[Tensor]:
    """`flat(given)`, as a graph that is captured at the first call for each key and these shapes.

    Args:
        network: whose graphs are kept, the last few of them.
        key: of all that `flat` depends on besides what it is given.
        flat: reads no value on the host, and depends on no tensor that changes but those it is given.
        given: tensors on the device.
    """
    key, table = ("graph", key, _shapes(given)), _built.setdefault(network, {})
    if key not in table:
        graphs = [other for other in table if isinstance(other, tuple) and other[0] == "graph"]
        for other in graphs[: max(0, len(graphs) - _MOST_GRAPHS + 1)]:
            del table[other]
        table[key] = _checked(_capture, flat, given, "graph")
    return (table[key] or flat)(given)


def forget(network: Network) -> None:
    """Give back the memory of what was built for a network."""
    _built.pop(network, None)


def warn_once(network: Network, key: str, text: str) -> None:
    """Warn, the first time for this network and key."""
    table = _built.setdefault(network, {})
    if key not in table:
        table[key] = None
        warnings.warn(text, RuntimeWarning, stacklevel=3)


def _shapes(given: list[Tensor]) -> Any:
    return tuple((tensor.shape, tensor.dtype, str(tensor.device)) for tensor in given)


def _checked(build: Callable[[Flat, list[Tensor]], Flat], flat: Flat, given: list[Tensor], how: str) -> Flat | None:
    """The function built, if it can be and gives the same numbers.

    They are compared on other values than it was built with: where one of those is baked in, they would agree on it.
    """
    other = [tensor * 1.01 if tensor.is_floating_point() else tensor.roll(1, 0) for tensor in given]
    try:
        built = build(flat, given)
        found = built(other)
    except Exception as error:  # a compiler may raise anything, and eager execution is there
        if is_out_of_memory(error):
            raise
        warnings.warn(f"execution {how} failed ({brief(error)}); running eagerly", RuntimeWarning, stacklevel=4)
        return None
    expected, most = flat(other), _MOST_DIFFERENCE.get(given[0].dtype, 5e-2)
    pairs = list(zip(found, expected, strict=True))
    if how == "graph":  # the same kernels, and outputs of all sizes
        difference = max(_apart(f, e, float(e.norm())) for f, e in pairs)
    else:
        difference = max(_apart(f, e, max(float(e.norm()) for e in expected)) for f, e in pairs)
    if not difference <= most:
        text = f"execution {how} differs from running eagerly by {difference:.1e}; running eagerly"
        warnings.warn(text, RuntimeWarning, stacklevel=4)
        return None
    return built


def _apart(found: Tensor, expected: Tensor, scale: float) -> float:
    return float((found - expected).norm()) / (scale or 1.0)


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
    before, side = torch.cuda.current_stream(), _side_stream(torch.cuda.current_device())
    side.wait_stream(before)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(side):
            for _ in range(3):
                flat(inputs)
        with torch.cuda.graph(graph, stream=side):
            outputs = flat(inputs)
    finally:
        torch.cuda.set_stream(before)  # a capture that fails leaves its own
    before.wait_stream(side)

    def run(tensors: list[Tensor]) -> list[Tensor]:
        for to, tensor in zip(inputs, tensors, strict=True):
            to.copy_(tensor)
        graph.replay()
        return [output.clone() for output in outputs]

    return run


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """One for all captures: cuBLAS keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

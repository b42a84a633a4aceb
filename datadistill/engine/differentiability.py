"""Check for second derivatives of a network, and the layers that lack them.

A hypergradient needs the derivative of a gradient. Most of PyTorch's operations have one; where one is missing there
are two ways to go wrong, and both are looked for here:

    loudly      PyTorch raises an error, deep inside a run, that names an operation but not the layer that calls it.
    silently    an `autograd.Function` whose backward is `once_differentiable`, or computes without autograd, is a
                constant for the second derivative. As long as other paths lead to every weight, no error is raised,
                and the hypergradient is wrong.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.func import functional_call

from datadistill.engine import kernels
from datadistill.engine.functional import Network, Noise, Weights, as_leaves
from datadistill.engine.hvp import HVP_FUNCTIONS
from datadistill.models.validate import check_scores, copied
from datadistill.utils.errors import RequestError, some_of
from datadistill.utils.runtime import is_out_of_memory

_SILENT = "PyTorch cannot differentiate the backward of custom function "
_CUT = "its output has no derivative with respect to its input"
_UNUSED = "the loss does not depend on it"
_ERROR_NODE = "torch::autograd::Error"
"""What PyTorch puts into a graph in the place of a derivative that does not exist."""


class Trouble(NamedTuple):
    """What stands in the way of a second derivative.

    Attributes:
        name: of the layer or the weight; empty for the network itself.
        kind: the layer's class, or `weight`.
        reason: in a few words.
    """

    name: str
    kind: str
    reason: str

    def __str__(self) -> str:
        if not self.name:
            return f"the network itself ({self.kind}: {self.reason})"
        if self.kind == "weight":
            return f"weight {self.name} ({self.reason})"
        return f"layer {self.name} ({self.kind}: {self.reason})"


class _Call(NamedTuple):
    """One call of a layer, as it was recorded."""

    layer: nn.Module
    inputs: tuple[Any, ...]
    named: dict[str, Any]


def require_differentiable(
    network: Network, image: Float[Tensor, "1 c h w"], num_classes: int, hvp: str = "reverse"
) -> None:
    """Refuse a network that cannot be distilled through. It costs one step on two images.

    Args:
        network: what is to be trained.
        image: any image, for its shape, type and device.
        num_classes: how many scores each image must get.
        hvp: one of `HVP_FUNCTIONS`, or auto; each asks something else of the layers.

    Raises:
        RequestError: naming the layers or weights that stand in the way.
    """
    draw = torch.Generator().manual_seed(0)
    images = torch.randn((2, *image.shape[1:]), generator=draw).to(image)
    labels = torch.arange(2, device=image.device) % num_classes
    troubles = find_undifferentiable(network, images, labels, num_classes, hvp)
    if not troubles:
        _require_repeatable(network, images)
        return
    named = some_of([*map(str, troubles)], 3)
    what = "trained" if hvp == "difference" else "distilled through"
    raise RequestError(f"the network cannot be {what} because of {named}: {_advice(troubles, hvp)}")


def _require_repeatable(network: Network, images: Float[Tensor, "n c h w"]) -> None:
    """Refuse a network that answers the same question differently: a step that is computed again must not change."""
    with _own_random_numbers(images.device), torch.no_grad():
        twin = replace(network.plain, module=copied(network.module))
        weights = {name: weight.detach() for name, weight in twin.module.named_parameters()}
        twin.logits(weights, images, noise=Noise(0))  # the first call of all compares copies
        before = {name: buffer.clone() for name, buffer in twin.module.named_buffers()}
        first, second = (twin.logits(weights, images, noise=Noise(0)) for _ in range(2))
        drawing = "" if _alike(first, second) else _drawing_layer(twin, weights, images)
        changed = [name for name, buffer in twin.module.named_buffers() if not torch.equal(buffer, before[name])]
    if changed:
        raise RequestError(
            f"the network changes its buffer {changed[0]} when it is called, which a step of training cannot hand on: "
            "use layers that keep nothing from call to call"
        )
    if not _alike(first, second):
        what = f"layer {drawing}" if drawing else "the network"
        raise RequestError(
            f"{what} answers the same images differently each time: set its dropout to 0 or switch its random numbers "
            "off, or draw them in torch.nn.Dropout, whose draws can be repeated"
        )


def _alike(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


def _drawing_layer(network: Network, weights: Weights, images: Float[Tensor, "n c h w"]) -> str:
    """The innermost layer that is the first to answer differently, as `e.self_attn (MultiheadAttention)`."""
    answers: dict[str, list[Tensor]] = {}  # in the order in which layers are done: the inner ones before the outer

    def recorder(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def record(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            answers.setdefault(name, []).extend(part.detach().clone() for part in _parts(output))

        return record

    twin = copy.deepcopy(network.module)
    for name, layer in twin.named_modules():
        if name:
            layer.register_forward_hook(recorder(name))
    listening = replace(network, module=twin)
    listening.logits(weights, images, noise=Noise(0))
    answers.clear()  # the first call of all compares copies
    for _ in range(2):
        listening.logits(weights, images, noise=Noise(0))
    for name, found in answers.items():
        half = len(found) // 2
        if not all(map(_alike, found[:half], found[half:])):
            return f"{name} ({_class_name(twin.get_submodule(name))})"
    return ""


def find_undifferentiable(
    network: Network,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, "n"],
    num_classes: int,
    hvp: str = "reverse",
) -> list[Trouble]:
    """The layers whose operations have no second derivative, and the weights that the loss does not depend on.

    The network, its buffers and the global random numbers are left as they are.

    Args:
        network: what is to be trained; its module's own weights are taken.
        images: a small batch.
        labels: class indices.
        num_classes: how many scores each image must get.
        hvp: one of `HVP_FUNCTIONS`, or auto. `difference` needs first derivatives only.

    Raises:
        RequestError: the network takes no such images, or gives no such scores.
    """
    hvp = "reverse" if hvp == "auto" else hvp
    with _own_random_numbers(images.device):
        twin = replace(network if hvp != "forward" else network.plain, module=copied(network.module))
        weights = as_leaves(dict(twin.module.named_parameters()))
        if not weights:
            raise RequestError("the network has no weights: there is nothing to train")
        images = images.detach()
        check_scores(lambda images: _whole(twin, weights, images), images, num_classes)
        loss = twin.loss(weights, images, labels)
        unused = _unused(loss, weights)
        failure = _failure(twin, weights, images, labels, hvp)
        if not failure and (hvp == "difference" or not _constants(loss, list(weights.values()))):
            return unused
        culprits = _culprits(twin, weights, images, hvp)
    if not failure:
        # A layer that answers with a constant, say a mask, does no harm.
        culprits = [trouble for trouble in culprits if trouble.reason.startswith(_SILENT)]
    if culprits or not failure or unused:
        return culprits + unused
    return [Trouble("", type(network.module).__name__, failure)]


def _advice(troubles: list[Trouble], hvp: str) -> str:
    if all(trouble.kind == "weight" for trouble in troubles):
        return "remove what is not used"
    if hvp == "difference":
        return "replace what is named by something that PyTorch can differentiate"
    if hvp == "forward":
        return "choose hvp reverse, which asks less of a layer"
    return (
        "replace what is named by something that PyTorch can differentiate twice, or choose hvp difference with "
        "storage recompute, an approximation that needs first derivatives only and smooth activations"
    )


def _own_random_numbers(device: torch.device) -> AbstractContextManager[None]:
    """Whatever a layer draws, the global generators are as before at the end."""
    devices = [device] if device.type == "cuda" else []
    return torch.random.fork_rng(devices)


def _whole(network: Network, weights: Weights, images: Tensor) -> Any:
    """Raw output of the module, before anything is done with it that takes scores for granted."""
    with torch.no_grad():
        return functional_call(network.module, weights, (images,))


def _unused(loss: Tensor, weights: Weights) -> list[Trouble]:
    if not loss.requires_grad:
        return []
    found: Sequence[Tensor | None] = torch.autograd.grad(
        loss, list(weights.values()), retain_graph=True, allow_unused=True
    )
    return [Trouble(name, "weight", _UNUSED) for name, g in zip(weights, found, strict=True) if g is None]


def _failure(network: Network, weights: Weights, images: Tensor, labels: Tensor, hvp: str) -> str:
    """PyTorch's error when a step is differentiated as a run would do it; empty without one."""
    tangent = {name: torch.ones_like(weight) for name, weight in weights.items()}
    start = {name: weight.detach() for name, weight in weights.items()}
    return _attempt(lambda: HVP_FUNCTIONS[hvp](network, start, images, labels, None, tangent, 0.0))


def _attempt(work: Callable[[], object]) -> str:
    try:
        work()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return _brief(error)
    return ""


def _brief(error: BaseException) -> str:
    """The first sentence of PyTorch's message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(".:")


def _constants(value: Tensor, leaves: list[Tensor]) -> list[str]:
    """Custom functions on the way from the leaves to a value whose derivative is a constant for the next one.

    A derivative is a linear function of what comes from behind, so an answer to it that is not zero and has no graph,
    or an error in the place of one, has lost its way.
    """
    found = []

    def watcher(name: str) -> Callable[[Sequence[Tensor | None], Sequence[Tensor | None]], None]:
        def watch(answers: Sequence[Tensor | None], asked: Sequence[Tensor | None]) -> None:
            if any(tensor is not None and tensor.requires_grad for tensor in asked) and any(map(_is_lost, answers)):
                found.append(name.removesuffix("Backward"))

        return watch

    nodes: list[Any] = [node for node in _nodes([value]) if isinstance(node, BackwardCFunction)]
    handles = [node.register_hook(watcher(node.name())) for node in nodes]
    if nodes:
        torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
    for handle in handles:
        handle.remove()
    return sorted(found)


def _is_lost(answer: Tensor | None) -> bool:
    if answer is None:
        return False
    if answer.grad_fn is not None:
        return answer.grad_fn.name() == _ERROR_NODE
    return not answer.requires_grad and bool(answer.any())


def _nodes(tensors: Iterable[Tensor]) -> set[Any]:
    """All nodes of the autograd graph behind these tensors."""
    seen: set[Any] = set()
    waiting = [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return seen


def _culprits(network: Network, weights: Weights, images: Tensor, hvp: str) -> list[Trouble]:
    """The layers that cannot be differentiated twice on their own, less those that only hold such a layer."""
    troubles: dict[str, Trouble] = {}
    # The innermost first: a name begins with the names of what holds it.
    for name, call in sorted(_recorded(network, weights, images).items(), key=lambda item: -item[0].count(".")):
        inside = name + "." if name else ""
        if any(found.startswith(inside) for found in troubles):
            continue
        reason = _failure_alone(call, hvp)
        if reason:
            troubles[name] = Trouble(name, _class_name(call.layer), reason)
    return sorted(troubles.values())


def _recorded(network: Network, weights: Weights, images: Tensor) -> dict[str, _Call]:
    """The first call of each layer, by the layer's name; the network itself has none and comes last."""
    calls: dict[str, _Call] = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def record(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            kept = {key: _kept(value) for key, value in named.items()}
            calls.setdefault(name, _Call(layer, tuple(_kept(value) for value in inputs), kept))

        return record

    # Hooks travel with the copies that a network makes of its module.
    twin = copy.deepcopy(network.module)
    for name, layer in twin.named_modules():
        layer.register_forward_pre_hook(recorder(name), with_kwargs=True)
    with torch.no_grad():
        replace(network, module=twin).logits(weights, images)
    whole = calls.pop("")
    return {**calls, "": whole}


def _kept(value: Any) -> Any:
    # A later operation may change it in place.
    return value.detach().clone() if isinstance(value, Tensor) else value


def _class_name(layer: nn.Module) -> str:
    """The class as its user knows it: `kernels` puts private ones in the place of PyTorch's."""
    name = type(layer).__name__
    return name.lstrip("_") if type(layer).__module__ == kernels.fitted.__module__ else name


def _failure_alone(call: _Call, hvp: str) -> str:
    """Why a layer has no second derivative; nothing if it has one, or has nothing to differentiate."""
    positions = {f"input {i}": value for i, value in enumerate(call.inputs)} | call.named
    inputs = {name: value for name, value in positions.items() if _is_differentiable(value)}
    own = dict(call.layer.named_parameters())
    if not inputs and not own:
        return ""

    def loss(tensors: Weights) -> Tensor:
        # Copies, because a layer may work in place.
        values = {name: tensors[name] * 1 if name in inputs else value for name, value in positions.items()}
        given = tuple(values.pop(f"input {i}") for i in range(len(call.inputs)))
        output = functional_call(call.layer, {name: tensors[name] for name in own}, given, values)
        # The square makes what reaches the layer from behind depend on everything that went in.
        return torch.stack([part.square().sum() for part in _parts(output)] or [torch.zeros(())]).sum()

    start = as_leaves({**{name: value.detach() for name, value in own.items()}, **inputs})
    if hvp == "forward":
        return _attempt(lambda: _forward(loss, start))
    return _backward_twice(loss, start, once=hvp == "difference")


def _is_differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _parts(output: Any) -> list[Tensor]:
    """Floating-point tensors in a layer's output."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = list(output.values())
    return [part for value in output for part in _parts(value)] if isinstance(output, tuple | list) else []


def _forward(loss: Callable[[Weights], Tensor], start: Weights) -> None:
    values = {name: tensor.detach() for name, tensor in start.items()}
    ones = {name: torch.ones_like(tensor) for name, tensor in values.items()}
    torch.func.jvp(torch.func.grad(loss), (values,), (ones,))


def _backward_twice(loss: Callable[[Weights], Tensor], start: Weights, once: bool) -> str:
    leaves = list(start.values())
    gradients: list[Tensor] = []
    constants: list[str] = []

    def first() -> None:
        value = loss(start)
        if value.requires_grad:
            constants.extend([] if once else _constants(value, leaves))
            found: Sequence[Tensor | None] = torch.autograd.grad(
                value, leaves, create_graph=not once, allow_unused=True
            )
            gradients.extend(g for g in found if g is not None)

    reason = _attempt(first)
    if reason or not gradients:
        return reason or _CUT
    if constants:
        return _SILENT + constants[0]
    again = [g.sum() for g in gradients if g.requires_grad]
    if not again:
        return ""
    return _attempt(lambda: torch.autograd.grad(torch.stack(again).sum(), leaves, allow_unused=True))

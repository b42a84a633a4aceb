"""Networks for the engine from what a user names, with the checks that every command makes.

A network of this package is known. What comes from elsewhere is asked everything that a run takes for granted, on a few
random images: whether it can be copied and called with other weights, what its answer is, which weights take part in
it, whether PyTorch sees all of them, whether the same question gets the same answer. What can be told is put right and
said (`Network.remarks`); what cannot is one sentence.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from datadistill.data.real import RealData
from datadistill.engine.differentiability import require_differentiable
from datadistill.engine.functional import Network, make_network
from datadistill.engine.overrides import REPLACED, Replaced, dropouts
from datadistill.models import ModelFactory, create_model, is_built_in
from datadistill.models.validate import check_scores, copied
from datadistill.utils.errors import RequestError, some_of
from datadistill.utils.runtime import is_out_of_memory

_IMAGES = 4
_REGISTER = "put layers into nn.ModuleList or nn.ModuleDict, weights into nn.Parameter, constants into register_buffer"


def network_for(
    model: str | ModelFactory,
    real: RealData,
    place: torch.device | Tensor,
    batch_norm: str = "auto",
    operations: str = "auto",
) -> Network:
    """Network of a model, checked, on a device.

    Args:
        model: as for `create_model`.
        real: what it is for.
        place: the device, or a tensor with the device and type of images.
        batch_norm: what layers with running statistics do, as for `make_network`; `auto`: each batch's own, unless the
            statistics have been trained or are switched to testing.
        operations: as for `make_network`.

    Raises:
        RequestError: it cannot be made, does not fit the dataset, or cannot be trained.
    """
    module = copied(create_model(model, real))
    policy, remarks = (batch_norm, []) if batch_norm != "auto" else _policy(module)
    known = make_network(module, policy, "off")
    if not is_built_in(model):
        known = _admitted(known, real, remarks)
        if not isinstance(model, nn.Module):
            _check_all_is_seen(module, create_model(model, real, seed=1), real)
    network = replace(known, module=known.module.to(place), batch_norm=policy, remarks=tuple(remarks))
    return network.with_operations(operations)


def _policy(module: nn.Module) -> tuple[str, list[str]]:
    """Default policy for layers with running statistics, and a sentence on it."""
    layers = {name: layer for name, layer in module.named_modules() if getattr(layer, "track_running_stats", False)}
    names = [name for name, layer in layers.items() if layer.training]
    if any(_is_trained(layer) for layer in layers.values()) or not names:
        return "refused", []
    return "batch", [
        f"batch normalisation ({some_of(names, 3)}) uses each batch's own statistics, in training and in testing; "
        "--batch-norm frozen uses those that the network has"
    ]


def _is_trained(layer: Any) -> bool:
    mean, variance = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
    trained = mean is not None and bool((mean != 0).any())
    return layer.training and (trained or (variance is not None and bool((variance != 1).any())))


def _admitted(network: Network, real: RealData, remarks: list[str]) -> Network:
    """The network, its module changed where that makes it what it is meant to be.

    Raises:
        RequestError: a run would fail, or be wrong.
    """
    module, images = copy.deepcopy(network.module), _random_images(real)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        remarks += _answer_in_testing(module, images)
        watched = _calls_replaced(module, images)
        remarks += _scores_not_shares(module, images)
        frozen, said = _freeze(module, images, real.num_classes)
    remarks += said
    network = Network(module, frozen=tuple(frozen), watched=watched)
    require_differentiable(network, images[:1], real.num_classes, "difference")
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    with torch.no_grad():
        check_scores(lambda asked: network.logits(weights, asked), images, real.num_classes)
    return network


def _random_images(real: RealData) -> Float[Tensor, "4 c h w"]:
    return torch.randn((_IMAGES, *real.train.images.shape[1:]), generator=torch.Generator().manual_seed(0))


def _asked(module: nn.Module, images: Tensor) -> Any:
    """Output of a copy of the module, or None where it fails."""
    return _try(lambda: copy.deepcopy(module)(images))


def _answer_in_testing(module: nn.Module, images: Tensor) -> list[str]:
    """Networks with further heads answer with all of them in training: then the module is switched to testing."""
    answer = _asked(module, images)
    if answer is None or isinstance(answer, Tensor) or not module.training:
        return []
    module.training = False  # the module's own flag: its layers stay in training
    if isinstance(_asked(module, images), Tensor):
        return [
            f"in training the network answers with a {type(answer).__name__}: the scores that it gives in testing are "
            "trained alone"
        ]
    module.training = True
    return []


def _calls_replaced(module: nn.Module, images: Tensor) -> bool:
    called = set[Any]()

    class Listening(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(func)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Listening():
        _asked(module, images)
    return not called.isdisjoint(REPLACED)


_ENDS: dict[str, tuple[type[nn.Module], Callable[[Tensor], Tensor]]] = {
    "softmax": (nn.Softmax, lambda shares: shares.clamp_min(torch.finfo(shares.dtype).tiny).log()),
    "sigmoid": (nn.Sigmoid, lambda shares: shares.logit(1e-6)),
}


def _scores_not_shares(module: nn.Module, images: Tensor) -> list[str]:
    """Cross-entropy takes scores: a softmax or a sigmoid that a network ends in is taken away, or undone."""
    end = _end_of(_asked(module, images))
    if not end:
        return []
    kind, undo = _ENDS[end]
    before = _asked(_in_testing(module), images)
    for name in _last_called(module, images, kind):
        layer = module.get_submodule(name)
        owner, _, own = name.rpartition(".")
        setattr(module.get_submodule(owner), own, nn.Identity())
        after = _asked(_in_testing(module), images)
        ours = after.softmax(1) if end == "softmax" else after.sigmoid()
        if torch.allclose(ours, before, rtol=1e-3, atol=1e-5):
            break
        setattr(module.get_submodule(owner), own, layer)  # it is called elsewhere too
    else:
        module.register_forward_hook(lambda _, inputs, shares: undo(shares))
    return [
        f"the network ends in a {end}, but the loss takes the scores before it: they are taken there; leave it out to "
        "say so"
    ]


def _end_of(answer: Any) -> str:
    """The name of the function that an answer comes from, where that makes shares of scores."""
    if not isinstance(answer, Tensor) or answer.dim() != 2 or answer.shape[1] < 2 or not answer.is_floating_point():
        return ""
    last = "" if answer.grad_fn is None else answer.grad_fn.name()
    if last == "SigmoidBackward0":
        return "sigmoid"
    adds_up = torch.allclose(answer.sum(1), torch.ones(len(answer)), atol=1e-4) and bool((answer >= 0).all())
    return "softmax" if last == "SoftmaxBackward0" or adds_up else ""


def _in_testing(module: nn.Module) -> nn.Module:
    """A copy without dropout, for comparison."""
    twin = copy.deepcopy(module)
    for layer in twin.modules():
        if type(layer).__name__.endswith("Dropout") or hasattr(layer, "dropout"):
            layer.training = False
    return twin


def _last_called(module: nn.Module, images: Tensor, kind: type[nn.Module]) -> list[str]:
    """The name of the layer that is called last, if it is of a kind."""
    twin, called = copy.deepcopy(module), list[str]()
    for name, layer in twin.named_modules():
        if name and not any(True for _ in layer.children()):
            layer.register_forward_pre_hook(lambda layer, inputs, name=name: called.append(name))
    with torch.no_grad():
        twin(images)
    return called[-1:] if called and isinstance(module.get_submodule(called[-1]), kind) else []


def _freeze(module: nn.Module, images: Tensor, num_classes: int) -> tuple[list[str], list[str]]:
    """Make buffers of the weights that are not trained; returns their names, and sentences on it.

    Raises:
        RequestError: PyTorch does not see all weights, or none is left to train.
    """
    weights = dict(module.named_parameters())
    if not weights:
        raise RequestError("the network has no weights: there is nothing to train")
    frozen = [name for name, weight in weights.items() if not weight.requires_grad]
    idle = _idle(module, images, num_classes)
    remarks = [f"weight {some_of(frozen, 3)} stays as it is: requires_grad is False"] if frozen else []
    remarks += [f"weight {some_of(idle, 3)} stays as it is: the scores do not depend on it"] if idle else []
    if len(frozen) + len(idle) == len(weights):
        raise RequestError(f"the network has nothing to train: {' and '.join(remarks)}")
    _make_buffers(module, {*frozen, *idle})
    return [*frozen, *idle], remarks


def _make_buffers(module: nn.Module, names: set[str]) -> None:
    tensors = {id(weight): weight.detach() for name, weight in module.named_parameters() if name in names}
    for layer in module.modules():
        for key, weight in list(layer._parameters.items()):
            if weight is not None and id(weight) in tensors:  # tied weights lie in several places
                del layer._parameters[key]
                layer.register_buffer(key, tensors[id(weight)])


def _idle(module: nn.Module, images: Tensor, num_classes: int) -> list[str]:
    """The trainable weights that the loss does not depend on.

    Raises:
        RequestError: it depends on weights that are no parameters of the module.
    """
    twin = copy.deepcopy(module)
    answer = _try(lambda: twin(images))
    if not isinstance(answer, Tensor) or answer.shape != (len(images), num_classes):
        return []  # what is wrong is said by `check_scores`
    weights = {name: weight for name, weight in twin.named_parameters() if weight.requires_grad}
    if not answer.requires_grad:
        return list(weights)
    loss = F.cross_entropy(answer, torch.arange(len(images)) % num_classes)
    known = {id(tensor) for tensor in (*twin.parameters(), *twin.buffers())}
    if any(id(leaf) not in known for leaf in _leaves(loss)):
        raise RequestError(
            f"the network has weights that PyTorch does not see{_places(twin)}, so that they would never be trained: "
            f"{_REGISTER}"
        )
    gradients = _try(lambda: torch.autograd.grad(loss, list(weights.values()), allow_unused=True))
    if gradients and not any(bool(g.any()) for g in gradients if g is not None):
        raise RequestError(
            "the network cannot be trained: the loss has no slope along any weight, as after rounding or comparing"
        )
    return [name for name, g in zip(weights, gradients or [loss] * len(weights), strict=True) if g is None]


def _try(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:  # whatever a user's code raises is said by `require_differentiable`
        if is_out_of_memory(error):
            raise
        return None


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """The tensors that the graph of a loss begins with."""
    seen, waiting = set[Any](), [loss.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [before for before, _ in node.next_functions]


def _places(module: nn.Module) -> str:
    """Where a module keeps layers or tensors that are not registered, as ` (layers of Net)`."""
    known = {id(thing) for thing in (*module.modules(), *module.parameters(), *module.buffers())}
    names = []
    for owner, layer in module.named_modules():
        for key, value in vars(layer).items():
            if not key.startswith(("_forward", "_backward", "_modules", "_parameters", "_buffers")) and any(
                id(thing) not in known for thing in _held(value)
            ):
                names.append(f"{owner}.{key}".lstrip("."))
    return f" ({some_of(names, 3)})" if names else ""


def _held(value: Any) -> Iterator[Any]:
    """The layers and tensors in a list, a tuple or a dictionary."""
    if isinstance(value, nn.Module | Tensor):
        yield value
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from _held(part)
    elif isinstance(value, dict):
        yield from _held(list(value.values()))


def _check_all_is_seen(module: nn.Module, other: nn.Module, real: RealData) -> None:
    """Refuse a function whose networks differ though their weights and buffers do not."""
    own, there = _tensors(module), _tensors(other)
    if {name: tensor.shape for name, tensor in own.items()} != {name: tensor.shape for name, tensor in there.items()}:
        raise RequestError(
            "the function that makes the network makes another one each time: its weights must have the same names and "
            "shapes"
        )
    images = _random_images(real)
    with torch.no_grad():
        for name, tensor in there.items():
            tensor.copy_(own[name])
        with Replaced(dropouts(None, images.device)):
            answer, again = (copy.deepcopy(each).eval()(images) for each in (module, other))
    if not torch.allclose(answer, again, rtol=1e-3, atol=1e-4):
        raise RequestError(
            "the network answers differently each time it is built, though its weights are the same: it keeps random "
            f"numbers that PyTorch does not see{_places(module)}; {_REGISTER}"
        )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}

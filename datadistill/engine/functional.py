"""A network as a pure function of its weights."""

import copy
import itertools
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from datadistill.engine import kernels
from datadistill.engine.losses import CROSS_ENTROPY, Labels, Loss
from datadistill.engine.overrides import Replaced, dropouts
from datadistill.engine.parallel import map_here, map_on_cores, shared_out
from datadistill.utils import ranks
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import is_out_of_memory

Weights: TypeAlias = dict[str, Tensor]
BatchNorm: TypeAlias = Literal["auto", "refused", "batch", "frozen"]


_MORE = (
    "one image has no statistics, so give more images of each class with --ipc, another --batch, --batch-norm frozen, "
    "or a network with another norm"
)


class Noise(NamedTuple):
    """Seed of dropout and augmentation, for some images of a batch.

    Attributes:
        seed: of the whole batch.
        first: the first of these images in the batch.
        total: images of the batch; 0: these are all.
    """

    seed: int
    first: int = 0
    total: int = 0


@dataclass(frozen=True, eq=False)
class Network:
    """A module called with weights from outside; its own parameters are never read. Any number of threads may call it.

    Attributes:
        module: gives the architecture. It must keep no state from call to call.
        operations: of `kernels`, which take the place of PyTorch's; they must have been built.
        augment: changes images before the module sees them, by draws for the whole batch, wherever dropout would draw.
        criterion: what it is trained by.
        frozen: names of weights that are not trained, which the module holds as buffers.
        watched: whether it calls functions that `overrides.dropouts` has others for, besides those of its layers.
        batch_norm: what was done about layers with running statistics, as for `make_network`.
        remarks: sentences on what was guessed about it.

    Raises:
        RequestError: a layer keeps running statistics.
    """

    module: nn.Module
    operations: tuple[str, ...] = ()
    augment: Callable[[Tensor, Noise], Tensor] | None = None
    criterion: Loss = CROSS_ENTROPY
    frozen: tuple[str, ...] = ()
    watched: bool = False
    batch_norm: str = "refused"
    remarks: tuple[str, ...] = ()
    _spare: list["_Body"] = field(default_factory=list, init=False, repr=False)
    _alone: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, layer in self.module.named_modules():
            if getattr(layer, "track_running_stats", False) and layer.training:
                raise RequestError(
                    f"layer {name} keeps running statistics, which a step of training cannot hand on: "
                    "choose --batch-norm batch (every batch's own statistics) or frozen (those the module has)"
                )
            if type(layer).__name__ in ("AlphaDropout", "FeatureAlphaDropout") and layer.p > 0:
                raise RequestError(
                    f"layer {name} is {type(layer).__name__}, whose draws cannot be repeated: set p to 0"
                )

    @property
    def alone(self) -> threading.Lock:
        """Held while the module itself is called with other weights; whoever writes to it must hold it too."""
        return self._alone

    @cached_property
    def couples_images(self) -> bool:
        """Whether an image's output depends on the others of its batch, as with batch normalisation."""
        norms = [layer for layer in self.module.modules() if isinstance(layer, _BatchNorm)]
        return any(norm.training or norm.running_mean is None for norm in norms)

    @cached_property
    def plain(self) -> "Network":
        """The same network with PyTorch's own operations alone."""
        return replace(self, operations=()) if self.operations else self

    def trained_by(self, criterion: Loss) -> "Network":
        """The same network with another loss. Both call one module, and so share the lock on it."""
        if criterion == self.criterion:
            return self
        other = replace(self, criterion=criterion)
        for name in ("_spare", "_alone"):
            object.__setattr__(other, name, getattr(self, name))
        return other

    def with_operations(self, operations: str) -> "Network":
        """The same network with other operations of ours, as `Engine.kernels` says it."""
        return replace(self, operations=kernels.chosen(operations, kernels.measured()))

    @property
    def constants(self) -> Weights:
        """The frozen weights, by name."""
        return {name: self.module.get_buffer(name).detach().clone() for name in self.frozen}

    def holding(self, weights: Weights | None) -> "Network":
        """The same network with the frozen weights that are among these; others keep their values."""
        own = {name: weight for name, weight in (weights or {}).items() if name in self.frozen}
        if any(weight.shape != self.module.get_buffer(name).shape for name, weight in own.items()) or not own:
            return self
        module = copy.deepcopy(self.module)
        with torch.no_grad():
            for name, weight in own.items():
                module.get_buffer(name).copy_(weight)
        return replace(self, module=module)

    @cached_property
    def draws(self) -> bool:
        """Whether a call draws random numbers."""
        return self.augment is not None or self._drops

    @cached_property
    def _drops(self) -> bool:
        return self.watched or any(isinstance(layer, _DropoutNd) and layer.p > 0 for layer in self.module.modules())

    def logits(
        self, weights: Weights, images: Float[Tensor, "n c h w"], noise: Noise | None = None
    ) -> Float[Tensor, "n k"]:
        """Class scores.

        Args:
            weights: by parameter name.
            images: a batch.
            noise: what dropout and augmentation draw from; None turns them off.
        """
        if self.augment is not None and noise is not None:
            images = self.augment(images, noise)
        if len(images) != 1:
            return self._answer(weights, images, noise)
        try:
            scores = self._answer(weights, images, noise)
        except (ValueError, IndexError, RuntimeError) as error:
            if isinstance(error, RequestError) or is_out_of_memory(error):
                raise
            raise RequestError(
                f"the network does not take a batch of one image ({' '.join(str(error).split())[:200]}): "
                f"{_MORE if self.couples_images else 'let it take any number'}"
            ) from error
        return scores.unsqueeze(0) if scores.dim() == 1 else scores  # squeeze() takes its dimension away

    def _answer(self, weights: Weights, images: Tensor, noise: Noise | None) -> Tensor:
        body = self._borrow(weights, images)
        if body is None:
            with self._alone, self._calls(noise, images.device) or nullcontext():
                return functional_call(self.module, weights, (images,))  # type: ignore[no-any-return]
        try:
            with self._calls(noise, images.device) or nullcontext():
                return body(weights, images)
        finally:
            self._spare.append(body)

    def loss(
        self,
        weights: Weights,
        images: Float[Tensor, "n c h w"],
        labels: Labels,
        noise: Noise | None = None,
    ) -> Float[Tensor, ""]:
        """The mean of `criterion` over the images."""
        return self.criterion(self.logits(weights, images, noise), labels)

    def gradient(
        self,
        weights: Weights,
        images: Float[Tensor, "n c h w"],
        labels: Labels,
        create_graph: bool = False,
        noise: Noise | None = None,
    ) -> tuple[Float[Tensor, ""], Weights]:
        """The mean loss and its gradient with respect to the weights, which must require gradients.

        `create_graph` keeps what is needed to differentiate the gradient again.
        """
        loss = self.loss(weights, images, labels, noise)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=create_graph)
        return loss, dict(zip(weights, gradients, strict=True))

    def _borrow(self, weights: Weights, images: Tensor) -> "_Body | None":
        """A copy of the module that no other thread has: a call lends it weights for a moment.

        None where a copy is not the same: it cannot be made, or a function in it still refers to the module itself.
        """
        try:
            return self._spare.pop()
        except IndexError:
            pass
        if not self._can_be_copied:
            return None
        with self._alone:
            body = self._copy()
            if body is None or not self._is_same(body, weights, images):
                self.__dict__["_can_be_copied"] = False
                return None
        return body

    @cached_property
    def _can_be_copied(self) -> bool:
        return True

    def _copy(self) -> "_Body | None":
        tensors = [*self.module.parameters(), *self.module.buffers()]
        try:
            twin = copy.deepcopy(self.module, {id(tensor): tensor for tensor in tensors})
        except Exception:  # whatever a module's attributes raise
            return None
        return _Body(kernels.fitted(twin, self.operations))

    def _is_same(self, body: "_Body", weights: Weights, images: Tensor) -> bool:
        if torch._C._functorch.maybe_current_level() is not None or torch.compiler.is_compiling():
            return True  # inside a transformation there are no values to compare
        values = {name: weight.detach() for name, weight in weights.items()}
        few = images[:2].detach()
        with torch.no_grad(), self._calls(Noise(0), images.device) or nullcontext():
            expected = functional_call(self.module, values, (few,))
            return torch.allclose(body(values, few), expected, rtol=1e-3, atol=1e-4, equal_nan=True)

    def _calls(self, noise: Noise | None, device: torch.device) -> TorchFunctionMode | None:
        # Each piece of a batch draws for itself.
        seed = None if noise is None else (noise.seed * 1_000_003 + noise.first) % 2**63
        return Replaced(dropouts(seed, device)) if self._drops else None


class _Body:
    """A module that can be called with other weights, by one thread at a time.

    The same as `torch.func.functional_call`, which looks for the module's parameters anew at every call; that takes
    longer than the arithmetic of a small layer.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        # Tied weights have one name and several places.
        self._places = [
            (layer._parameters, key, names[id(parameter)])
            for layer in module.modules()
            for key, parameter in layer._parameters.items()
            if parameter is not None
        ]
        self._plain = not any(isinstance(layer, nn.RNNBase) for layer in module.modules())

    def __call__(self, weights: Weights, images: Tensor) -> Tensor:
        if not self._plain:
            return functional_call(self.module, weights, (images,))  # type: ignore[no-any-return]
        own = [places[key] for places, key, _ in self._places]
        try:
            for places, key, name in self._places:
                places[key] = weights[name]  # type: ignore[assignment]
            return self.module(images)  # type: ignore[no-any-return]
        finally:
            for (places, key, _), parameter in zip(self._places, own, strict=True):
                places[key] = parameter


def make_network(module: nn.Module, batch_norm: str = "refused", operations: str = "auto") -> Network:
    """A network from a module, which is copied if it has to be changed.

    Args:
        module: any module from images to class scores.
        batch_norm: what layers with running statistics do. `batch`: use each batch's own statistics, in training and
            in testing; `frozen`: use the running statistics they have, as constants; `refused`: there may be none.
        operations: which of ours take the place of PyTorch's, if they have been built, as `Engine.kernels` says it.

    Raises:
        RequestError: a layer keeps running statistics and nobody said what to do with them.
    """
    layers = [layer for layer in module.modules() if getattr(layer, "track_running_stats", False)]
    if layers and batch_norm != "refused":
        module = copy.deepcopy(module)
        for layer in module.modules():
            if getattr(layer, "track_running_stats", False) and isinstance(layer, nn.Module):
                _settle(layer, batch_norm)
    return Network(module, kernels.chosen(operations, kernels.measured()), batch_norm=batch_norm)


def _settle(layer: Any, batch_norm: str) -> None:
    if batch_norm == "frozen":
        layer.eval()
        return
    layer.track_running_stats = False
    layer.running_mean = layer.running_var = layer.num_batches_tracked = None


def as_leaves(tensors: Weights) -> Weights:
    """Detached leaves of the same values, which require gradients."""
    return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}


def batch_gradient(
    network: Network,
    weights: Weights,
    images: Float[Tensor, "n c h w"],
    labels: Labels,
    chunk: int,
    noise: int | None = None,
    precision: str = "float32",
    is_large: bool = False,
) -> tuple[Float[Tensor, ""], Weights]:
    """Mean loss over a batch and its gradient, in chunks that bound the memory, fit the cache and share the cores.

    Where a batch's images depend on each other the batch stays whole: chunks would be another function. What is drawn
    to augment a batch does not depend on how it is cut. Chunks of a large batch, such as the real one of an outer step,
    are worth sharing out among processes too.

    Returns:
        The loss and the gradient by weight name, both without a graph.
    """

    def of_piece(piece: slice) -> tuple[Tensor, Weights]:
        with _arithmetic(precision, images.device):
            loss, gradients = network.gradient(
                as_leaves(weights), images[piece], labels[piece], noise=noise_of(noise, piece, len(labels))
            )
        return loss.detach(), gradients

    def summed(pieces: Iterable[slice], found: Iterable[tuple[Tensor, Weights]]) -> tuple[Tensor, Weights]:
        total, sums = torch.zeros((), dtype=images.dtype, device=images.device), Weights()
        for piece, (loss, gradients) in zip(pieces, found, strict=True):
            share = (piece.stop - piece.start) / len(labels)
            total += loss * share
            add_to(sums, gradients, share)
        return total, sums

    pieces = pieces_of(network, len(labels), chunk)
    if is_large and ranks.are_at_hand():
        # Each by itself, so that the sum does not depend on how many ranks there are.
        return summed(pieces, map_on_cores(of_piece, pieces, images.device))
    groups = shared_out(pieces, images.device)
    parts = map_here(lambda group: summed(group, map(of_piece, group)), groups, images.device)
    for _, gradients in parts[1:]:
        add_to(parts[0][1], gradients, 1.0)
    return torch.stack([loss for loss, _ in parts]).sum(), parts[0][1]


def _arithmetic(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """`bfloat16` for matrix products and convolutions; sums and losses stay as they are."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, torch.bfloat16)


def pieces_of(network: Network, count: int, chunk: int) -> list[slice]:
    """Nearly equal pieces of a batch, of at most `chunk` images (0: as many as there are)."""
    if network.couples_images or chunk == 0 or chunk >= count:
        return [slice(0, count)]
    pieces = -(-count // chunk)
    edges = [round(count * i / pieces) for i in range(pieces + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def noise_of(seed: int | None, piece: slice, total: int) -> Noise | None:
    """Seed for a piece of a batch of so many images."""
    return None if seed is None else Noise(seed, piece.start, total)


def add_to(sums: Weights, terms: Weights, factor: float) -> None:
    """`sums += factor * terms`, in place; `sums` may be empty, and terms may be overwritten."""
    for name, term in terms.items():
        if name in sums:
            sums[name].add_(term, alpha=factor)
        else:
            sums[name] = term if factor == 1 else term.mul_(factor)

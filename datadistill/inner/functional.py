"""A network as a pure function of its weights."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from datadistill.errors import RequestError

Weights: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Network:
    """A module called with weights from outside; its own parameters are never read.

    Attributes:
        module: gives the architecture. It must keep no state from call to call.

    Raises:
        RequestError: a layer keeps running statistics, or draws random numbers.
    """

    module: nn.Module

    def __post_init__(self) -> None:
        for name, layer in self.module.named_modules():
            if getattr(layer, "track_running_stats", False):
                raise RequestError(
                    f"layer {name} keeps running statistics, which a step of training cannot hand on: "
                    "make it with track_running_stats=False"
                )
            if isinstance(layer, _DropoutNd) and layer.p > 0:
                raise RequestError(f"layer {name} is dropout, which would draw differently each time: set p to 0")

    @cached_property
    def couples_images(self) -> bool:
        """Whether an image's output depends on the others of its batch, as with batch normalisation."""
        return any(isinstance(layer, _BatchNorm) for layer in self.module.modules())

    def twin(self) -> "Network":
        """The same architecture in a module of its own."""
        return Network(copy.deepcopy(self.module))

    def logits(self, weights: Weights, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Class scores."""
        return functional_call(self.module, weights, (images,))  # type: ignore[no-any-return]

    def loss(self, weights: Weights, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, "n"]) -> Float[Tensor, ""]:
        """Mean cross-entropy."""
        return F.cross_entropy(self.logits(weights, images), labels)

    def gradient(
        self,
        weights: Weights,
        images: Float[Tensor, "n c h w"],
        labels: Int64[Tensor, "n"],
        create_graph: bool = False,
    ) -> tuple[Float[Tensor, ""], Weights]:
        """The mean loss and its gradient with respect to the weights, which must require gradients.

        Args:
            weights: leaves that require gradients.
            images: a batch.
            labels: class indices.
            create_graph: keep what is needed to differentiate the gradient again.
        """
        loss = self.loss(weights, images, labels)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=create_graph)
        return loss, dict(zip(weights, gradients, strict=True))


def as_leaves(tensors: Weights) -> Weights:
    """The same values, cut from any graph, as leaves that require gradients."""
    return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}


def batch_gradient(
    network: Network,
    weights: Weights,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, "n"],
    chunk: int,
) -> tuple[Float[Tensor, ""], Weights]:
    """Mean loss over a large batch and its gradient, in chunks that bound the memory and fit the cache.

    Where a batch's images depend on each other the batch stays whole: chunks would be another function.

    Returns:
        The loss and the gradient by weight name, both without a graph.
    """
    leaves = as_leaves(weights)
    chunk = len(labels) if network.couples_images else chunk
    total = torch.zeros((), dtype=images.dtype, device=images.device)
    summed: Weights = {}
    for first in range(0, len(labels), chunk):
        part = slice(first, first + chunk)
        loss, gradients = network.gradient(leaves, images[part], labels[part])
        share = len(labels[part]) / len(labels)
        total += loss.detach() * share
        for name, gradient in gradients.items():
            if name in summed:
                summed[name].add_(gradient, alpha=share)
            else:
                summed[name] = gradient.mul_(share)
    return total, summed

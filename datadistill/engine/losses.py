"""Losses that networks are trained by: means over images, of class scores and labels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

Labels: TypeAlias = Int64[Tensor, "n"] | Float[Tensor, "n k"]
"""Class indices, or soft labels: the targets as the loss uses them."""


@dataclass(frozen=True)
class Loss:
    """A loss of class scores and labels.

    Attributes:
        name: `cross-entropy`; `mse`, the squared distance of class scores from labels, a mean over classes too; or
            `kl`, the Kullback-Leibler divergence of softmax(scores / temperature) from labels, times the squared
            temperature (Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2).
        temperature: of `kl`. Soft labels are taken as they are: a teacher's have its temperature in them already.
    """

    name: str = "cross-entropy"
    temperature: float = 1.0

    def __call__(self, scores: Float[Tensor, "n k"], labels: Labels) -> Float[Tensor, ""]:
        return LOSSES[self.name](scores, labels, self.temperature)


def _cross_entropy(scores: Tensor, labels: Tensor, temperature: float) -> Tensor:
    return F.cross_entropy(scores, labels)


def _mse(scores: Tensor, labels: Tensor, temperature: float) -> Tensor:
    # PyTorch's own has no forward derivative of its gradient where labels have a gradient of 0 ("ZeroTensors").
    return (scores - _by_class(labels, scores)).square().mean()


def _kl(scores: Tensor, labels: Tensor, temperature: float) -> Tensor:
    shares = _by_class(labels, scores)
    # The entropy of the labels is a constant of training. Its derivative is infinite at 0, as in one-hot labels, and
    # learned labels may be negative.
    known = shares.detach().clamp(min=0)
    entropy = -torch.xlogy(known, known).sum(1).mean()
    return temperature**2 * (F.cross_entropy(scores / temperature, shares) - entropy)


def _by_class(labels: Tensor, scores: Tensor) -> Tensor:
    """A number for each class: soft labels as they are, class indices one-hot."""
    return labels if labels.is_floating_point() else F.one_hot(labels, scores.shape[1]).to(scores.dtype)


CROSS_ENTROPY = Loss()

LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "cross-entropy": _cross_entropy,
    "mse": _mse,
    "kl": _kl,
}

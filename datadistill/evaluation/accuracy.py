"""Accuracy of networks on one split."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from datadistill.data.real import Split
from datadistill.inner.functional import Network, Weights
from datadistill.inner.optimizers import SGD
from datadistill.inner.unroll import InnerStep, walk

_BATCH = 500


class Accuracy(NamedTuple):
    """How a network does on a split.

    Attributes:
        correct: share of images whose class it names.
        loss: mean cross-entropy.
    """

    correct: float
    loss: float


@torch.no_grad()
def accuracy_of(network: Network, weights: Weights, split: Split) -> Accuracy:
    """Accuracy and loss over a whole split."""
    correct, loss = 0, 0.0
    for first in range(0, len(split), _BATCH):
        part = slice(first, first + _BATCH)
        logits = network.logits(weights, split.images[part])
        labels = split.labels[part]
        correct += int((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return Accuracy(correct / len(split), loss / len(split))


@torch.no_grad()
def confusion_of(network: Network, weights: Weights, split: Split) -> Float[Tensor, "k k"]:
    """Share of each class's images (rows) that a network takes for each class (columns); rows without images are 0."""
    classes = split.num_classes
    counts = torch.zeros(classes * classes, dtype=torch.int64)
    for first in range(0, len(split), _BATCH):
        part = slice(first, first + _BATCH)
        answers = network.logits(weights, split.images[part]).argmax(1)
        counts += torch.bincount((split.labels[part] * classes + answers).cpu(), minlength=classes * classes)
    table = counts.view(classes, classes).double()
    return table / table.sum(1, keepdim=True).clamp(min=1)


def accuracy_along(
    network: Network, weights: Weights, steps: Sequence[InnerStep], split: Split, every: bool = False
) -> list[Accuracy]:
    """Accuracy before plain gradient descent and after it, or with `every` after each step too."""
    return [
        accuracy_of(network, reached, split)
        for t, reached in enumerate(walk(network, SGD(), weights, steps))
        if every or t in (0, len(steps))
    ]

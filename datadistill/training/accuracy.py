"""Accuracy of networks on one split."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from datadistill.data.real import Split
from datadistill.engine.functional import Network, Weights

_BATCH = 500


class Accuracy(NamedTuple):
    """Accuracy and loss of a network on a split.

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
    for images, labels in _pieces(network, split):
        logits = network.logits(weights, images)
        correct += int((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return Accuracy(correct / len(split), loss / len(split))


@torch.no_grad()
def confusion_of(network: Network, weights: Weights, split: Split) -> Float[Tensor, "k k"]:
    """Share of each class's images (rows) that a network takes for each class (columns); rows without images are 0."""
    classes = split.num_classes
    counts = torch.zeros(classes * classes, dtype=torch.int64)
    for images, labels in _pieces(network, split):
        answers = network.logits(weights, images).argmax(1)
        counts += torch.bincount((labels * classes + answers).cpu(), minlength=classes * classes)
    table = counts.view(classes, classes).double()
    return table / table.sum(1, keepdim=True).clamp(min=1)


def _pieces(network: Network, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels in nearly equal batches; shuffled, always alike, where an image's answer depends on its batch.

    The images of a folder lie class by class, and the statistics of one class's images are not those of the split.
    """
    if network.couples_images:
        split = split.take(torch.randperm(len(split), generator=torch.Generator().manual_seed(0)))
    count = max(1, -(-len(split) // _BATCH))
    return zip(split.images.tensor_split(count), split.labels.tensor_split(count), strict=True)

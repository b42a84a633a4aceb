"""Accuracy of networks on one split."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

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


def accuracy_along(
    network: Network, weights: Weights, steps: Sequence[InnerStep], split: Split, every: bool = False
) -> list[Accuracy]:
    """Accuracy before plain gradient descent and after it, or with `every` after each step too."""
    return [
        accuracy_of(network, reached, split)
        for t, reached in enumerate(walk(network, SGD(), weights, steps))
        if every or t in (0, len(steps))
    ]

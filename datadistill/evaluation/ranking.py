"""Scores by which others rank distilled sets, from accuracies: those of DD-Ranking and of DC-BENCH.

They are arithmetic on accuracies that were measured elsewhere, each a mean over networks and runs. All accuracies and
all scores are fractions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from datadistill.utils.errors import RequestError


@dataclass(frozen=True)
class LabelRobustScore:
    """Label robust score: worth of distilled images apart from their labels.

    Source: DD-Ranking (NUS-HPC-AI-Lab), documentation of v0.2.0.

    Attributes:
        real_hard: accuracy of networks trained on the whole real dataset, with hard labels.
        syn_hard: on the distilled images, with hard labels.
        syn_own: on the distilled set by its own protocol, with whatever labels that has.
        random_own: on as many random real images by the same protocol.
        weight: of the improvement over random, 0 to 1; the rest is that of the hard labels.

    Raises:
        RequestError: a value is no fraction.
    """

    real_hard: float
    syn_hard: float
    syn_own: float
    random_own: float
    weight: float = 0.5

    def __post_init__(self) -> None:
        _check_fractions(self)

    @property
    def hard_label_recovery(self) -> float:
        """HLR: how far hard labels stay behind the real dataset; less is better."""
        return self.real_hard - self.syn_hard

    @property
    def improvement_over_random(self) -> float:
        """IOR: what distilling adds to random images."""
        return self.syn_own - self.random_own

    @property
    def alpha(self) -> float:
        """The weighted sum of both, -1 to 1."""
        return self.weight * self.improvement_over_random - (1 - self.weight) * self.hard_label_recovery

    @property
    def score(self) -> float:
        """LRS, 0 to 1."""
        return _scaled(self.alpha)


@dataclass(frozen=True)
class AugmentationRobustScore:
    """Augmentation robust score: worth of distilled images apart from augmentation.

    Source: DD-Ranking (NUS-HPC-AI-Lab), documentation of v0.2.0.

    Attributes:
        syn_augmented: accuracy of networks trained on the distilled set, with augmentation.
        random_augmented: on as many random real images, with the same augmentation.
        syn_plain: on the distilled set, without.
        random_plain: on the random images, without.
        weight: of the difference with augmentation, 0 to 1; the rest is that of the other.

    Raises:
        RequestError: a value is no fraction.
    """

    syn_augmented: float
    random_augmented: float
    syn_plain: float
    random_plain: float
    weight: float = 0.5

    def __post_init__(self) -> None:
        _check_fractions(self)

    @property
    def beta(self) -> float:
        """The weighted sum of what distilling adds to random images with augmentation and without, -1 to 1."""
        augmented, plain = self.syn_augmented - self.random_augmented, self.syn_plain - self.random_plain
        return self.weight * augmented + (1 - self.weight) * plain

    @property
    def score(self) -> float:
        """ARS, 0 to 1."""
        return _scaled(self.beta)


def best_over_augmentations(accuracies: Mapping[str, float]) -> float:
    """The highest accuracy that any augmentation gives (DC-BENCH, Cui et al., NeurIPS 2022).

    On a test split this chooses by test images, as DC-BENCH does: say so beside the number.

    Args:
        accuracies: by augmentation, one of which may be none.

    Raises:
        RequestError: there are none, or one is no fraction.
    """
    return max(_checked(accuracies, "augmentation"))


def average_over_augmentations(accuracies: Mapping[str, float]) -> float:
    """The mean accuracy over augmentations (DC-BENCH, Cui et al., NeurIPS 2022).

    Args:
        accuracies: by augmentation, one of which may be none.

    Raises:
        RequestError: there are none, or one is no fraction.
    """
    return _mean(_checked(accuracies, "augmentation"))


def average_over_transfer(accuracies: Mapping[str, float]) -> float:
    """The mean accuracy over other networks than the set was distilled with (DC-BENCH, Cui et al., NeurIPS 2022).

    Args:
        accuracies: by network, without the one that the set was distilled with.

    Raises:
        RequestError: there are none, or one is no fraction.
    """
    return _mean(_checked(accuracies, "network"))


def _scaled(value: float) -> float:
    """Exponential map of -1 to 1 onto 0 to 1: a gain counts more where a set is good already."""
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _checked(accuracies: Mapping[str, float], kind: str) -> list[float]:
    if not accuracies:
        raise RequestError(f"there is no accuracy to take together: give that of at least one {kind}")
    for name, value in accuracies.items():
        _check_fraction(f"the accuracy of {kind} {name}", value)
    return list(accuracies.values())


def _check_fractions(record: Any) -> None:
    for field in fields(record):
        _check_fraction(field.name, getattr(record, field.name))


def _check_fraction(name: str, value: float) -> None:
    if 1 < value <= 100:
        raise RequestError(f"{name} is {value}, which looks like a percentage: give a fraction from 0 to 1")
    if not 0 <= value <= 1:
        raise RequestError(f"{name} is {value}, but must be a fraction from 0 to 1")

"""Scores: a mean, how far it can be trusted, and how it was measured."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from datadistill.training.carried import read_inner


@dataclass(frozen=True)
class Summary:
    """Accuracies of one or several networks, as fractions.

    Attributes:
        mean: over networks.
        std: over networks (n - 1); None for a single one.
        ci95: 95 % interval of the mean: Student's t over networks, or, for a single network, Wilson's over
            test images.
    """

    mean: float
    std: float | None
    ci95: tuple[float, float]


def summarize(accuracies: list[float], images: int) -> Summary:
    """The summary of one accuracy per network, each measured on `images` images."""
    values = np.asarray(accuracies)
    mean = float(values.mean())
    if len(values) == 1:
        return Summary(mean, None, wilson(mean, images))
    return Summary(mean, float(values.std(ddof=1)), student(values))


def student(values: Float64[np.ndarray, "n"]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of several shares, within 0 and 1."""
    from scipy.special import stdtrit  # commands that judge nothing do not wait for it

    mean, count = float(values.mean()), len(values)
    reach = float(stdtrit(count - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(count)
    return max(0.0, mean - reach), min(1.0, mean + reach)


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` (Wilson 1927)."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - reach), min(1.0, centre + reach)


@dataclass(frozen=True)
class Score:
    """One line of a report.

    Attributes:
        model: the network that was trained.
        weights: the kind of initial weights and their scheme.
        protocol: how it was trained.
        nets: how many networks.
        split: what it was tested on.
        images: how many images that split has.
        accuracy: after training.
        before: of the networks as they start: untrained, or pretrained and not adapted; None where no network is
            trained.
        by_step: after each gradient step, where asked for.
        seconds: that the measurement took.
        device: where.
        settings: the recipe it was trained by, as `training.carried` spells it; None for plain steps of the data's own.
    """

    model: str
    weights: str
    protocol: str
    nets: int
    split: str
    images: int
    accuracy: Summary
    before: Summary | None
    by_step: tuple[Summary, ...]
    seconds: float
    device: str
    settings: dict[str, Any] | None = None

    @property
    def training(self) -> str:
        """The recipe, for people; empty for plain steps of the data's own."""
        return "" if self.settings is None else str(read_inner(self.settings))

    def as_json(self) -> dict[str, Any]:
        """JSON-ready; accuracies are fractions."""
        return asdict(self)


def percent(summary: Summary | None) -> str:
    """A summary for people, such as `93.80 %` or `82.8 ± 1.6 %`; `-` for none."""
    if summary is None:
        return "-"
    if summary.std is None:
        return f"{100 * summary.mean:.2f} %"
    return f"{100 * summary.mean:.1f} ± {100 * summary.std:.1f} %"

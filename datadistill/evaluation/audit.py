"""Audit of a distilled set from elsewhere: its effect on networks, class by class.

Distilled images can be made to teach a wrong answer: after one gradient step on them a good network takes one class
for another and is otherwise as before (Wang et al. 2018, section 3.5). Such a set looks like any other, so it is tried:
good networks take the set's own steps, and fresh ones are trained on it. What gives an attack away is not that accuracy
falls, as data made for untrained networks may ruin a trained one, but that one class goes over to one other class while
the rest stand.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.data.real import RealData, Split
from datadistill.distilled import DistilledData
from datadistill.engine.functional import Network, Weights
from datadistill.training.accuracy import confusion_of
from datadistill.training.carried import recipe_of
from datadistill.training.fit import fit
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream

SHARE = 0.2
"""The least share of a class, more than before, that must be taken for one other class."""

APART = 3.0
"""How many times what the median class loses that share must be."""


@dataclass(frozen=True)
class ClassChange:
    """Effect of a set on one class; shares are means over networks.

    Attributes:
        name: of the class.
        before: share of its images that networks name rightly before; not a number, as all shares, where the test split
            has no images of it.
        after: and after the set's steps.
        taken_for: the other class that gains most of its images.
        share_before: share of its images taken for that class before.
        share_after: and after.
    """

    name: str
    before: float
    after: float
    taken_for: str
    share_before: float
    share_after: float

    @property
    def gain(self) -> float:
        """Share of this class that is newly taken for the other one."""
        return self.share_after - self.share_before


@dataclass(frozen=True)
class Audit:
    """Effect of a set on one kind of networks.

    Attributes:
        networks: what they were: `trained`, or `fresh` ones, which the set alone trains.
        nets: how many.
        classes: by index.
        suspects: classes that look attacked, the worst first.
        overall_before: mean of `before` over the classes with test images.
        overall_after: mean of `after` over them.
    """

    networks: str
    nets: int
    classes: tuple[ClassChange, ...]
    suspects: tuple[ClassChange, ...]
    overall_before: float
    overall_after: float

    def as_json(self) -> dict[str, Any]:
        """JSON-ready; accuracies are fractions, and null where a class has no test images."""
        return {name: _without_nan(value) for name, value in asdict(self).items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_without_nan(one) for one in value]
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def audit(
    distilled: DistilledData,
    real: RealData,
    network: Network,
    starts: Sequence[Weights],
    *,
    trained: bool,
    seed: int = 0,
    count: Callable[[], None] = lambda: None,
) -> Audit:
    """Try a distilled set on networks, with its own steps and learning rates.

    Args:
        distilled: the set.
        real: the dataset whose test images tell.
        network: the architecture.
        starts: weights of good networks, or initial weights.
        trained: which of the two. What a fresh network answers before means nothing, so that an even spread stands
            there, and a class's loss is what it lacks to being always right.
        seed: for dropout.
        count: called after each network.

    Raises:
        RequestError: the set does not fit the dataset, or has no steps of its own.
    """
    distilled.check_matches(real)
    if distilled.is_condensed:
        raise RequestError("this distilled data has no steps of its own to try: it is trained on by protocol dc")
    distilled, recipe, tables = distilled.to(real.test.images.device), recipe_of(distilled), []
    for number, start in enumerate(starts):
        last = fit(network, start, distilled, recipe, stream(seed, "audit-noise", number))
        tables.append(torch.stack([_table(network, weights, real.test) for weights in (start, last)]))
        count()
    before, after = torch.stack(tables).mean(0)
    if not trained:
        before = torch.full_like(before, 1 / len(before))  # what a network answers that knows nothing
    judged = real.test.counts > 0
    before[~judged], after[~judged] = math.nan, math.nan
    classes = _changes(before, after, real.classes)
    reached = before if trained else torch.eye(len(before), dtype=before.dtype)
    losses = (reached - after).diagonal()[judged].clamp(min=0)
    return Audit(
        networks="trained" if trained else "fresh",
        nets=len(starts),
        classes=classes,
        suspects=_suspects(classes, float(losses.median())),
        overall_before=float(before.diagonal()[judged].mean()),
        overall_after=float(after.diagonal()[judged].mean()),
    )


def _table(network: Network, weights: Weights, split: Split) -> Float[Tensor, "k k"]:
    """Confusion matrix; a network whose weights are not finite any more answers evenly."""
    if not all(bool(weight.isfinite().all()) for weight in weights.values()):
        return torch.full((split.num_classes, split.num_classes), 1 / split.num_classes, dtype=torch.float64)
    return confusion_of(network, weights, split)


def _changes(
    before: Float[Tensor, "k k"], after: Float[Tensor, "k k"], names: tuple[str, ...]
) -> tuple[ClassChange, ...]:
    found = []
    for k, name in enumerate(names):
        gains = after[k] - before[k]
        gains[k] = -1.0
        other = int(gains.argmax())
        found.append(
            ClassChange(
                name=name,
                before=float(before[k, k]),
                after=float(after[k, k]),
                taken_for=names[other],
                share_before=float(before[k, other]),
                share_after=float(after[k, other]),
            )
        )
    return tuple(found)


def _suspects(classes: Sequence[ClassChange], usual: float) -> tuple[ClassChange, ...]:
    """Classes that go over to one other class, where the median class loses far less; the worst first."""
    found = [change for change in classes if change.gain >= max(SHARE, APART * usual)]
    return tuple(sorted(found, key=lambda change: -change.gain))

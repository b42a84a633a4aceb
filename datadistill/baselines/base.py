"""The interface of baselines, and the tuning of their learning rates on held-out data."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.distilled import DistilledData
from datadistill.engine import Weights
from datadistill.engine.parallel import map_on_cores
from datadistill.methods import DD, Problem
from datadistill.methods.dd import SCHEDULES
from datadistill.training.accuracy import Accuracy, accuracy_of
from datadistill.training.carried import BATCH_NORM, inner_of, recipe_of
from datadistill.training.fit import fit
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.errors import DatadistillError
from datadistill.utils.progress import Bar, quiet
from datadistill.utils.runtime import stream

COARSE = tuple(float(f"{10 ** (k / 2):.5g}") for k in range(-6, 3))
"""First rates tried on a few networks, two to a decade: 0.001 to 10."""

_FINE = tuple(10 ** (k / 8) for k in range(-3, 4))
_FEW, _NETWORKS = 4, 12


@dataclass(frozen=True)
class Rates:
    """Learning rates for all steps from two choices.

    Attributes:
        schedule: one of `SCHEDULES`.
        first: the first step's.
    """

    schedule: str
    first: float

    def put(self, data: DistilledData) -> DistilledData:
        """Distilled data with these rates."""
        assert data.learning_rates is not None
        shape = SCHEDULES[self.schedule](len(data.learning_rates))
        return replace(data, learning_rates=(self.first * shape).to(data.learning_rates))

    def nearby(self) -> list["Rates"]:
        """These rates and six near them, of the same schedule, eight to a decade."""
        return [replace(self, first=float(f"{self.first * factor:.5g}")) for factor in _FINE]


@dataclass(frozen=True)
class Baseline:
    """A `Synthesis` whose pieces are whole sets, each with the learning rates that suit it best.

    What is random about a set goes by the problem's seed, the baseline and the number of the set alone.

    Attributes:
        steps: batches the images are cut into, in the order in which they are chosen.
        epochs: how often they are walked.
        sets: how many are made, or drawn to choose from.
        recipe: of protocol `dc`, instead of rates that are tuned; then steps and epochs are 1.
        bar: shows progress.
    """

    name: ClassVar[str]
    line: ClassVar[str]
    steps: int = 1
    epochs: int = 1
    sets: int = 1
    recipe: TrainRecipe | None = None
    bar: Bar = field(default=quiet, compare=False, repr=False)

    def run(self, problem: Problem) -> list[DistilledData]:
        """All sets, the first or the best first.

        Raises:
            RequestError: the problem does not fit, or cannot be cut into so many steps.
        """
        mine = self.resolve(problem)
        return [mine.piece(set_, problem, stream(problem.seed, "piece", set_)) for set_ in range(mine.pieces(problem))]

    def resolve(self, problem: Problem) -> "Baseline":
        """The same: nothing goes by the problem."""
        return self

    def pieces(self, problem: Problem) -> int:
        """Number of sets."""
        return self.sets

    def piece(self, number: int, problem: Problem, generator: torch.Generator) -> DistilledData:
        """One set with tuned learning rates; or without any, to be trained on by the recipe."""
        data = self.chosen(number, problem)
        if self.recipe is None:
            return tune(data, problem, self.bar)
        said = {name: value for name, value in data.provenance.inner.items() if name == BATCH_NORM}
        inner = inner_of(self.recipe) | said
        batches = torch.arange(len(data.labels), device=data.labels.device).view(1, -1)
        judged = replace(data.noted(inner=inner), batches=batches, learning_rates=None)
        return replace(judged, initial_weights=None) if judged.is_condensed else judged

    def chosen(self, number: int, problem: Problem) -> DistilledData:
        """The set of this number, with rates that are still to be tuned."""
        raise NotImplementedError

    def assembled(self, problem: Problem, images: Float[Tensor, "n c h w"], **facts: Any) -> DistilledData:
        """Distilled data from images of the classes `problem.labels`, with rates that are still to be tuned.

        Raises:
            RequestError: the images cannot be cut into so many steps.
        """
        data, _ = DD(steps=self.steps, epochs=self.epochs).init(problem, stream(problem.seed, "baseline"))
        return replace(data.noted(method={"name": self.name, **facts}), images=images.to(problem.device))


def by_class(problem: Problem, pick: Callable[[int], Float[Tensor, "ipc c h w"]]) -> Float[Tensor, "n c h w"]:
    """Images picked for each class, in the order of `problem.labels`."""
    picked = torch.cat([pick(label) for label in range(problem.real.num_classes)])
    order = torch.argsort(problem.labels, stable=True)
    images = torch.empty_like(picked)
    images[order.to(picked.device)] = picked
    return images


def tuning_networks(problem: Problem) -> list[Weights]:
    """Initial weights for tuning: neither those of the evaluation nor those of a distilling run."""
    count = 1 if problem.starts.fixed is not None else _NETWORKS
    return problem.starts.sample(count, stream(problem.seed, "tuning"))


def held_out_accuracy(data: DistilledData, problem: Problem, starts: list[Weights]) -> float:
    """Mean accuracy on the held-out slice; -1 where a network ends without a finite loss, so that it never wins."""
    recipe = recipe_of(data)

    def one(start: Weights) -> Accuracy:
        last = fit(problem.network, start, data, recipe, stream(problem.seed, "tuning-noise"))
        return accuracy_of(problem.network, last, problem.real.held_out)

    found = map_on_cores(one, starts, problem.device)
    if not all(math.isfinite(accuracy.loss) for accuracy in found):
        return -1.0
    return sum(accuracy.correct for accuracy in found) / len(found)


def tune(data: DistilledData, problem: Problem, bar: Bar = quiet, near: Rates | None = None) -> DistilledData:
    """Distilled data with the learning rates of the best mean held-out accuracy.

    With `near`, rates near these alone are tried.

    Each schedule is tried with the `COARSE` first rates on a few networks, then with rates near the best of them on
    more networks, the same ones for all rates.

    Raises:
        DatadistillError: every rate diverges.
    """
    starts = tuning_networks(problem)
    few = starts[:_FEW]
    assert data.learning_rates is not None
    schedules = [near.schedule] if near else list(SCHEDULES)[: len(data.learning_rates)]  # one step has one schedule
    pieces = len(schedules) * (len(_FINE) * len(starts) + (0 if near else len(COARSE) * len(few)))
    best: dict[str, tuple[float, Rates]] = {}
    with bar("tuning rates", pieces) as count:

        def accuracy(rates: Rates, networks: list[Weights]) -> float:
            found = held_out_accuracy(rates.put(data), problem, networks)
            for _ in networks:
                count()
            return found

        for schedule in schedules:
            centre = near or max((Rates(schedule, rate) for rate in COARSE), key=lambda rates: accuracy(rates, few))
            tried = [(accuracy(rates, starts), rates) for rates in centre.nearby()]
            best[schedule] = max(tried, key=lambda entry: entry[0])
    reached, rates = max(best.values(), key=lambda entry: entry[0])
    if reached < 0:
        raise DatadistillError(f"every learning rate down to {rates.first:g} diverges with these images")
    tuning = {
        "schedule": rates.schedule,
        "rate": rates.first,
        "tuning_networks": len(starts),
        "held_out": {schedule: accuracy for schedule, (accuracy, _) in best.items() if accuracy >= 0},
    }
    scores = [{"split": "held_out", "accuracy": reached}]
    return rates.put(data).noted(method=data.provenance.method | tuning, scores=scores)


def held_out_score(data: DistilledData) -> float:
    """Held-out accuracy that `tune` reached."""
    return float(data.provenance.scores[0]["accuracy"])

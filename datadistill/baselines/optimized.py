"""`optimized`: the best of many random sets, by accuracy on held-out training images.

The "optimized" baseline of Wang et al., "Dataset Distillation", arXiv 1811.10959 (2018), which keeps the best 20 % by
accuracy on training batches; here it is the held-out slice of the training split.
"""

from dataclasses import dataclass

import torch

from datadistill.baselines.base import Rates, held_out_accuracy, held_out_score, tune, tuning_networks
from datadistill.baselines.random_real import RandomReal
from datadistill.distilled import DistilledData
from datadistill.methods import Problem
from datadistill.utils.errors import RequestError

KEPT = 0.2


@dataclass(frozen=True)
class Optimized(RandomReal):
    """The best fifth of the sets that `random` draws, best first.

    They are compared with the rates tuned for the first of them, on the networks that rates are tuned on; those that
    are kept then get rates of their own.
    """

    name = "optimized"
    line = "the best fifth of many random sets, by held-out accuracy"
    sets: int = 50

    def resolve(self, problem: Problem) -> "Optimized":
        """The same.

        Raises:
            RequestError: it was asked for protocol `dc`.
        """
        if self.recipe is not None:
            raise RequestError(
                f"baseline optimized trains networks on {self.sets} sets to choose among them, which takes protocol dc "
                "too long: use another one, such as random"
            )
        return self

    def pieces(self, problem: Problem) -> int:
        """Number of sets that are kept."""
        return max(1, round(KEPT * self.sets))

    def piece(self, number: int, problem: Problem, generator: torch.Generator) -> DistilledData:
        """The set of that rank; all sets are compared at once, for the first that is asked for."""
        if self not in problem.cache:
            problem.cache[self] = self._ranked(problem)
        ranked: list[DistilledData] = problem.cache[self]
        return ranked[number]

    def _ranked(self, problem: Problem) -> list[DistilledData]:
        drawn = [self.chosen(number, problem) for number in range(self.sets)]
        method = tune(drawn[0], problem, self.bar).provenance.method
        rates = Rates(method["schedule"], method["rate"])
        starts, scores = tuning_networks(problem), list[float]()
        with self.bar("comparing sets", self.sets) as count:
            for data in drawn:
                scores.append(held_out_accuracy(rates.put(data), problem, starts))
                count()
        order = sorted(range(self.sets), key=lambda number: scores[number], reverse=True)[: self.pieces(problem)]
        facts = {"drawn": self.sets, "kept": len(order), "held_out_of_all": sum(scores) / self.sets}
        noted = [drawn[number].noted(method=drawn[number].provenance.method | facts) for number in order]
        kept = [tune(data, problem, self.bar, near=rates) for data in noted]
        return sorted(kept, key=held_out_score, reverse=True)

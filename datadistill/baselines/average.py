"""`average`: the mean image of every class.

There is one mean image per class, whatever is asked for: it is stored once, and every step uses it (Wang et al. 2018
repeat it for each step; that trains a network the same way and takes more room).
"""

from dataclasses import dataclass, replace

import torch

from datadistill.baselines.base import Baseline, by_class
from datadistill.distilled import DistilledData
from datadistill.methods import Problem
from datadistill.utils.errors import RequestError


@dataclass(frozen=True)
class Average(Baseline):
    """The class means as one set; all gradient steps of an epoch are on the same images."""

    name = "average"
    line = "the mean image of each class, used at every step"

    def resolve(self, problem: Problem) -> "Average":
        """The same.

        Raises:
            RequestError: more than one set; the means leave nothing to chance.
        """
        if self.sets > 1:
            raise RequestError(f"sets is {self.sets}, but class means are always the same: ask for 1")
        return self

    def chosen(self, number: int, problem: Problem) -> DistilledData:
        train, once = problem.real.train, replace(problem, ipc=1)
        images = by_class(once, lambda label: train.take(train.of_class(label)).images.mean(0, keepdim=True))
        repeated = self.assembled(replace(problem, ipc=self.steps), images.repeat(self.steps, 1, 1, 1))
        labels = torch.arange(problem.real.num_classes, device=problem.device)
        return replace(repeated, images=images, labels=labels, batches=labels.repeat(self.steps, 1))

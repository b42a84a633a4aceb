"""`random`: real images of every class, drawn without replacement."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.baselines.base import Baseline, by_class
from datadistill.distilled import DistilledData
from datadistill.methods import Problem
from datadistill.utils.runtime import stream


@dataclass(frozen=True)
class RandomReal(Baseline):
    """Sets of random real images."""

    name = "random"
    line = "random real images"

    def chosen(self, number: int, problem: Problem) -> DistilledData:
        train = problem.real.train
        ipc = problem.real.check_ipc(problem.ipc)
        generator = stream(problem.seed, "random-real", number)

        def pick(label: int) -> Float[Tensor, "ipc c h w"]:
            members = train.of_class(label)
            return train.take(members[torch.randperm(len(members), generator=generator)[: ipc[label]]]).images

        return self.assembled(problem, by_class(problem, pick), set=number)

"""`herding`: real images whose mean feature follows that of their class.

Welling, "Herding dynamical weights to learn", ICML 2009, as greedy mean matching: each image in turn is the one that
brings the mean feature of those chosen nearest to the mean of the class. With features of equal length that is
Welling's rule, which goes by inner products.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from datadistill.baselines.features import ByFeatures


@dataclass(frozen=True)
class Herding(ByFeatures):
    """Sets of herded images."""

    name = "herding"
    line = "real images whose mean feature follows their class's"

    @staticmethod
    def select(features: Float[Tensor, "n d"], count: int) -> Int64[Tensor, "{count}"]:
        mean, total = features.mean(0), torch.zeros_like(features[0])
        chosen, taken = list[int](), torch.zeros(len(features), dtype=torch.bool, device=features.device)
        for size in range(1, count + 1):
            distances = ((total + features) / size - mean).norm(dim=1)
            chosen.append(int(distances.masked_fill(taken, torch.inf).argmin()))
            taken[chosen[-1]] = True
            total = total + features[chosen[-1]]
        return torch.tensor(chosen)

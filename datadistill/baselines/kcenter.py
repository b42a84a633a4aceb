"""`kcenter`: real images such that every other one of their class is near one of them in feature space.

Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach", ICLR 2018: the greedy
k-center, which always takes the image that is farthest from those taken. The first is the one nearest to the class
mean.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from datadistill.baselines.features import ByFeatures


@dataclass(frozen=True)
class KCenter(ByFeatures):
    """Sets of k-center images."""

    name = "kcenter"
    line = "real images that no other of their class is far from in feature space"

    @staticmethod
    def select(features: Float[Tensor, "n d"], count: int) -> Int64[Tensor, "{count}"]:
        chosen = [int((features - features.mean(0)).norm(dim=1).argmin())]
        nearest = (features - features[chosen[0]]).norm(dim=1)
        nearest[chosen[0]] = -1  # no row is taken twice, even where several are the same
        while len(chosen) < count:
            chosen.append(int(nearest.argmax()))
            nearest = torch.minimum(nearest, (features - features[chosen[-1]]).norm(dim=1))
            nearest[chosen[-1]] = -1
        return torch.tensor(chosen)

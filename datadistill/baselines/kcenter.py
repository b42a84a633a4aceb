"""`kcenter`: real images such that every other one of their class is near one of them in feature space.

Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach", ICLR 2018: the greedy
k-center, which always takes the image that is farthest from those taken. The first is the one nearest to the class
mean.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from datadistill.baselines.features import chosen_by_features
from datadistill.distilled import DistilledData
from datadistill.methods import Problem
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.progress import Bar, quiet


def kcenter(
    problem: Problem,
    steps: int,
    epochs: int,
    sets: int = 1,
    bar: Bar = quiet,
    recipe: TrainRecipe | None = None,
) -> list[DistilledData]:
    """Sets of k-center images, each by the features of another network.

    Args:
        problem: dataset, network, initial weights, images per class, seed.
        steps: batches the images are cut into, in the order in which they are chosen.
        epochs: how often they are walked.
        sets: how many.
        bar: shows progress.
        recipe: of protocol `dc`, instead of rates that are tuned; then steps and epochs are 1.
    """
    return chosen_by_features("kcenter", spread, problem, steps, epochs, sets, bar, recipe)


def spread(features: Float[Tensor, "n d"], count: int) -> Int64[Tensor, "{count}"]:
    """Indices of `count` rows, without repetition, in the order in which they are chosen."""
    chosen = [int((features - features.mean(0)).norm(dim=1).argmin())]
    nearest = (features - features[chosen[0]]).norm(dim=1)
    nearest[chosen[0]] = -1  # no row is taken twice, even where several are the same
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (features - features[chosen[-1]]).norm(dim=1))
        nearest[chosen[-1]] = -1
    return torch.tensor(chosen)

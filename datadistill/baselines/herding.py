"""`herding`: real images whose mean feature follows that of their class.

Welling, "Herding dynamical weights to learn", ICML 2009, as greedy mean matching: each image in turn is the one that
brings the mean feature of those chosen nearest to the mean of the class. With features of equal length that is
Welling's rule, which goes by inner products.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from datadistill.baselines.features import chosen_by_features
from datadistill.distilled import DistilledData
from datadistill.methods import Problem
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.progress import Bar, quiet


def herding(
    problem: Problem,
    steps: int,
    epochs: int,
    sets: int = 1,
    bar: Bar = quiet,
    recipe: TrainRecipe | None = None,
) -> list[DistilledData]:
    """Sets of herded images, each by the features of another network.

    Args:
        problem: dataset, network, initial weights, images per class, seed.
        steps: batches the images are cut into, in the order in which they are chosen.
        epochs: how often they are walked.
        sets: how many.
        bar: shows progress.
        recipe: of protocol `dc`, instead of rates that are tuned; then steps and epochs are 1.
    """
    return chosen_by_features("herding", herd, problem, steps, epochs, sets, bar, recipe)


def herd(features: Float[Tensor, "n d"], count: int) -> Int64[Tensor, "{count}"]:
    """Indices of `count` rows, without repetition, in the order in which they are chosen."""
    mean, total = features.mean(0), torch.zeros_like(features[0])
    chosen, taken = list[int](), torch.zeros(len(features), dtype=torch.bool, device=features.device)
    for size in range(1, count + 1):
        distances = ((total + features) / size - mean).norm(dim=1)
        chosen.append(int(distances.masked_fill(taken, torch.inf).argmin()))
        taken[chosen[-1]] = True
        total = total + features[chosen[-1]]
    return torch.tensor(chosen)

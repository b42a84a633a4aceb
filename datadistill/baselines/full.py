"""The full real dataset in the place of distilled data: the upper end of every comparison."""

import torch

from datadistill.distilled import DistilledData
from datadistill.methods import Problem
from datadistill.training.carried import inner_of
from datadistill.training.recipe import TrainRecipe


def full_dataset(problem: Problem, recipe: TrainRecipe) -> DistilledData:
    """All images of `train` and `held_out`, to be trained on by protocol `dc`.

    Args:
        problem: dataset, network, scheme.
        recipe: of the protocol; its epochs should be far fewer than for a few images.
    """
    splits = (problem.real.train, problem.real.held_out)
    labels = torch.cat([split.labels for split in splits])
    return DistilledData(
        images=torch.cat([split.images for split in splits]),
        labels=labels,
        batches=torch.arange(len(labels), device=labels.device).view(1, -1),
        learning_rates=None,
        provenance=problem.provenance("full", {}, inner_of(recipe)),
    )

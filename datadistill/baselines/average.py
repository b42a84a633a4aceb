"""`average`: the mean image of every class.

There is one mean image per class, whatever is asked for: it is stored once, and every step uses it (Wang et al. 2018
repeat it for each step; that trains a network the same way and takes more room).
"""

from dataclasses import replace

import torch

from datadistill.baselines.base import assemble, by_class, finished
from datadistill.distilled import DistilledData
from datadistill.methods import Problem
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.errors import RequestError
from datadistill.utils.progress import Bar, quiet


def average(
    problem: Problem,
    steps: int,
    epochs: int,
    sets: int = 1,
    bar: Bar = quiet,
    recipe: TrainRecipe | None = None,
) -> list[DistilledData]:
    """The class means as one set.

    Args:
        problem: dataset, network, initial weights, images per class (of which the steps are made), seed.
        steps: gradient steps in an epoch, all on the same images.
        epochs: how often they are walked.
        sets: one; the means leave nothing to chance.
        bar: shows progress.
        recipe: of protocol `dc`, instead of rates that are tuned; then steps and epochs are 1.

    Raises:
        RequestError: more than one set.
    """
    if sets > 1:
        raise RequestError(f"sets is {sets}, but class means are always the same: ask for 1")
    train, classes = problem.real.train, problem.real.num_classes
    once = replace(problem, ipc=1)
    images = by_class(once, lambda label: train.take(train.of_class(label)).images.mean(0, keepdim=True))
    drawn = assemble(replace(problem, ipc=steps), steps, epochs, images.repeat(steps, 1, 1, 1), {"name": "average"})
    labels = torch.arange(classes, device=problem.device)
    data = replace(drawn, images=images, labels=labels, batches=labels.repeat(steps, 1))
    return [finished(data, problem, bar, recipe)]

"""`random`: real images of every class, drawn without replacement."""

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.baselines.base import assemble, by_class, finished
from datadistill.distilled import DistilledData
from datadistill.methods import Problem
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.progress import Bar, quiet
from datadistill.utils.runtime import stream


def random_real(
    problem: Problem,
    steps: int,
    epochs: int,
    sets: int = 1,
    bar: Bar = quiet,
    recipe: TrainRecipe | None = None,
) -> list[DistilledData]:
    """Sets of random real images, each with rates of its own.

    Args:
        problem: dataset, network, initial weights, images per class, seed.
        steps: batches the images are cut into.
        epochs: how often they are walked.
        sets: how many.
        bar: shows progress.
        recipe: of protocol `dc`, instead of rates that are tuned; then steps and epochs are 1.
    """
    return [finished(draw(problem, steps, epochs, "random", number), problem, bar, recipe) for number in range(sets)]


def draw(problem: Problem, steps: int, epochs: int, name: str, number: int) -> DistilledData:
    """The random set of this number, with rates that are still to be tuned."""
    train = problem.real.train
    ipc = problem.real.check_ipc(problem.ipc)
    generator = stream(problem.seed, "random-real", number)

    def pick(label: int) -> Float[Tensor, "ipc c h w"]:
        members = train.of_class(label)
        return train.take(members[torch.randperm(len(members), generator=generator)[: ipc[label]]]).images

    return assemble(problem, steps, epochs, by_class(problem, pick), {"name": name, "set": number})

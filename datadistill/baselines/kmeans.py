"""`kmeans`: the cluster centres of every class's images."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from datadistill.baselines.base import assemble, by_class, finished
from datadistill.data.kmeans import STARTS, cluster_centres
from datadistill.distilled import DistilledData
from datadistill.methods import Problem
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.progress import Bar, quiet
from datadistill.utils.runtime import stream


def kmeans(
    problem: Problem,
    steps: int,
    epochs: int,
    sets: int = 1,
    bar: Bar = quiet,
    recipe: TrainRecipe | None = None,
) -> list[DistilledData]:
    """Sets of cluster centres, which differ in where k-means starts.

    Args:
        problem: dataset, network, initial weights, images per class, seed.
        steps: batches the images are cut into.
        epochs: how often they are walked.
        sets: how many.
        bar: shows progress.
        recipe: of protocol `dc`, instead of rates that are tuned; then steps and epochs are 1.
    """
    ipc, made = problem.real.check_ipc(problem.ipc), list[DistilledData]()
    for number in range(sets):
        with bar("finding clusters", problem.real.num_classes) as count:

            def pick(label: int, number: int = number, count: Callable[[], None] = count) -> Float[Tensor, "k c h w"]:
                generator = stream(problem.seed, "kmeans", number, label)
                centres = cluster_centres(problem.real.train, label, ipc[label], generator)
                count()
                return centres

            images = by_class(problem, pick)
        options = {"name": "kmeans", "set": number, "starts": STARTS}
        made.append(finished(assemble(problem, steps, epochs, images, options), problem, bar, recipe))
    return made

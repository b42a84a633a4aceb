"""`kmeans`: the cluster centres of every class's images."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.baselines.base import assemble, by_class, tune
from datadistill.distilled import DistilledData
from datadistill.methods import Problem
from datadistill.progress import Bar, quiet
from datadistill.runtime import stream

STARTS = 3


def kmeans(problem: Problem, steps: int, epochs: int, sets: int = 1, bar: Bar = quiet) -> list[DistilledData]:
    """Sets of cluster centres, which differ in where k-means starts.

    Args:
        problem: dataset, network, initial weights, images per class, seed.
        steps: batches the images are cut into.
        epochs: how often they are walked.
        sets: how many.
        bar: shows progress.
    """
    ipc, made = problem.real.check_ipc(problem.ipc), list[DistilledData]()
    for number in range(sets):
        with bar("finding clusters", problem.real.num_classes) as count:

            def pick(label: int, number: int = number, count: Callable[[], None] = count) -> Float[Tensor, "k c h w"]:
                centres = _centres(problem, label, number, ipc[label])
                count()
                return centres

            images = by_class(problem, pick)
        options = {"name": "kmeans", "set": number, "starts": STARTS}
        made.append(tune(assemble(problem, steps, epochs, images, options), problem, bar))
    return made


def _centres(problem: Problem, label: int, number: int, count: int) -> Float[Tensor, "k c h w"]:
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    train = problem.real.train
    images = train.take(train.of_class(label)).images.cpu()
    seed = int(torch.randint(2**31, (), generator=stream(problem.seed, "kmeans", number, label)))
    # Several threads add up in the order in which they are ready: the last bits would differ from run to run.
    with threadpool_limits(limits=1):
        found = KMeans(count, n_init=STARTS, tol=0, random_state=seed).fit(images.flatten(1).numpy())
    return torch.from_numpy(found.cluster_centers_).to(images).view(-1, *images.shape[1:])

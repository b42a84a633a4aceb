"""Initial images, real images of a class, and batches in shuffled order: what methods share."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from datadistill.data.kmeans import cluster_centres
from datadistill.methods.base import Problem


def first_images(kind: str, problem: Problem, generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Distilled images before the first outer step, on the CPU, of the classes `problem.labels`.

    Args:
        kind: `noise` (standard normal), `mean` (class means), `real` images, or `kmeans` (cluster centres of each
            class).
        problem: what is distilled.
        generator: on the CPU.
    """
    train, classes, count = problem.real.train, problem.real.num_classes, problem.count
    shape = (count, *train.images.shape[1:])
    if kind == "noise":
        return torch.randn(shape, generator=generator)
    images = torch.empty(shape)
    for label in range(min(classes, count)):
        mine = torch.nonzero(problem.labels == label).flatten().tolist()
        if kind == "kmeans":
            images[mine] = cluster_centres(train, label, len(mine), generator)
        elif kind == "real":
            images[mine] = train.take(some_of_class(problem, label, len(mine), generator)).images.cpu()
        else:
            shared = range(label, classes, count)  # all classes that the image stands for
            means = [train.take(train.of_class(one)).images.mean(0) for one in shared]
            images[mine] = torch.stack(means).mean(0).cpu()
    return images


def some_of_class(problem: Problem, label: int, count: int, generator: torch.Generator) -> Int64[Tensor, "m"]:
    """Indices of different training images of a class, on the CPU: so many, or all if there are fewer."""
    members = problem.real.train.of_class(label)
    return members[torch.randperm(len(members), generator=generator)[:count]]


def shuffled_batches(count: int, size: int, steps: int, generator: torch.Generator) -> list[Int64[Tensor, "b"]]:
    """The images of each gradient step: walks in shuffled order; one batch for all steps where it holds all images.

    Args:
        count: images in all.
        size: images in a batch, but the last of a walk; 0: all.
        steps: how many batches.
        generator: on the CPU.
    """
    if size == 0 or size >= count:
        return [torch.arange(count)]
    batches: list[Tensor] = []
    while len(batches) < steps:
        order = torch.randperm(count, generator=generator)
        batches += [order[first : first + size] for first in range(0, count, size)]
    return batches[:steps]

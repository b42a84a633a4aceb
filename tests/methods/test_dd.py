"""What dataset distillation starts from."""

import torch

import datadistill as dd
from datadistill.methods import DD, Problem, make_problem
from datadistill.runtime import stream


def problem(real: dd.RealData) -> Problem:
    cpu = torch.device("cpu")
    return make_problem(real, model="mlp", weights="random-init", scheme="xavier", ipc=3, seed=0, device=cpu)


def test_images_from_kmeans_are_means_of_the_images_nearest_to_them(digits: dd.RealData) -> None:
    data = DD(images="kmeans").start(problem(digits), stream(0))
    for label in range(10):
        points = digits.train.images[digits.train.labels == label].flatten(1)
        centres = data.images[data.labels == label].flatten(1)
        nearest = torch.cdist(points, centres).argmin(1)
        for number, centre in enumerate(centres):
            assert torch.allclose(points[nearest == number].mean(0), centre, atol=1e-4)


def test_images_from_kmeans_are_the_same_for_the_same_seed(digits: dd.RealData) -> None:
    one, same, other = (DD(images="kmeans").start(problem(digits), stream(seed)).images for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)

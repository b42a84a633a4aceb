"""What dataset distillation starts from."""

import torch
from conftest import start_of

import datadistill as dd
from datadistill.data.kmeans import cluster_centres
from datadistill.distillation.problem import make_problem
from datadistill.methods import DD, Problem
from datadistill.utils.runtime import stream


def problem(real: dd.RealData) -> Problem:
    cpu = torch.device("cpu")
    return make_problem(real, model="mlp", weights="random-init", scheme="xavier", ipc=3, seed=0, device=cpu)


def test_images_can_start_from_cluster_centres(digits: dd.RealData) -> None:
    data, generator = start_of(DD(images="kmeans"), problem(digits), stream(0)), stream(0)
    for label in range(10):
        centres = cluster_centres(digits.train, label, 3, generator)
        assert torch.equal(data.images[data.labels == label], centres)


def test_images_from_kmeans_are_the_same_for_the_same_seed(digits: dd.RealData) -> None:
    one, same, other = (start_of(DD(images="kmeans"), problem(digits), stream(seed)).images for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)

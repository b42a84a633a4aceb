"""Herding, k-center, and the features that they choose by."""

import numpy as np
import pytest
import torch
from sklearn.metrics import pairwise_distances
from torch import nn

import datadistill as dd
from datadistill.baselines.features import features_of, make_features
from datadistill.baselines.herding import Herding
from datadistill.baselines.kcenter import KCenter
from datadistill.distillation.problem import make_problem
from datadistill.engine import make_network
from datadistill.models import create_model, draw_weights
from datadistill.utils.progress import quiet
from datadistill.utils.runtime import stream


@pytest.fixture(scope="module")
def points() -> torch.Tensor:
    return torch.randn(300, 12, generator=stream(0)) * torch.linspace(0.2, 2, 12)


def test_herding_follows_the_mean_faster_than_random(points: torch.Tensor) -> None:
    def distance(chosen: torch.Tensor) -> list[float]:
        sizes = torch.arange(1, len(chosen) + 1)[:, None]
        return (points[chosen].cumsum(0) / sizes - points.mean(0)).norm(dim=1).tolist()

    herded = distance(Herding.select(points, 40))
    drawn = [distance(torch.randperm(300, generator=stream(1, k))[:40]) for k in range(20)]
    assert all(mine < min(others) for mine, *others in list(zip(herded, *drawn, strict=True))[1:])
    assert herded[-1] < 0.1 * herded[0]


def test_herding_is_greedy(points: torch.Tensor) -> None:
    """By the definition, one candidate at a time."""
    mean, chosen = points.mean(0), list[int]()
    for _ in range(5):
        rest = [k for k in range(300) if k not in chosen]
        chosen.append(min(rest, key=lambda k: float((points[[*chosen, k]].mean(0) - mean).norm())))
    assert Herding.select(points, 5).tolist() == chosen


def test_the_radius_of_kcenter_shrinks(points: torch.Tensor) -> None:
    chosen = KCenter.select(points, 40)
    distances = pairwise_distances(points.numpy(), points[chosen].numpy())
    radii = [distances[:, :size].min(1).max() for size in range(1, 41)]
    assert np.all(np.diff(radii) <= 0)
    assert radii[-1] < 0.7 * radii[0]
    assert chosen[0] == (points - points.mean(0)).norm(dim=1).argmin()
    for size in range(1, 40):
        assert distances[chosen[size], :size].min() == pytest.approx(radii[size - 1]), "always the farthest"


@pytest.mark.parametrize("select", [Herding.select, KCenter.select])
def test_nothing_is_chosen_twice(select: object) -> None:
    same = torch.ones(6, 3)
    assert sorted(select(same, 6).tolist()) == list(range(6))  # type: ignore[operator]


def test_features_are_what_the_last_linear_layer_is_given(digits: dd.RealData) -> None:
    network = make_network(create_model("mlp", digits))
    weights = draw_weights(network.module, "xavier", stream(0))
    features = features_of(network, weights, digits.train)
    assert features.shape == (len(digits.train), 128)
    names = [name for name, layer in network.module.named_modules() if isinstance(layer, nn.Linear)]
    logits = features @ weights[f"{names[-1]}.weight"].T + weights[f"{names[-1]}.bias"]
    assert torch.allclose(logits, network.logits(weights, digits.train.images), atol=1e-5)


def test_what_follows_the_last_linear_layer_is_no_part_of_the_features(digits: dd.RealData) -> None:
    body = [nn.Flatten(), nn.Linear(64, 16), nn.ReLU()]
    network = make_network(nn.Sequential(*body, nn.Linear(16, 10), nn.LogSoftmax(dim=1)))
    weights = draw_weights(network.module, "xavier", stream(0))
    expected = torch.relu(digits.train.images.flatten(1) @ weights["1.weight"].T + weights["1.bias"])
    assert torch.allclose(features_of(network, weights, digits.train), expected, atol=1e-6)


def test_the_features_come_from_a_network_that_learned(digits: dd.RealData) -> None:
    cpu = torch.device("cpu")
    problem = make_problem(digits, model="mlp", weights="random-init", scheme="xavier", ipc=2, seed=0, device=cpu)
    assert make_features(problem, 0, quiet).accuracy > 0.95

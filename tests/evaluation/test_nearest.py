"""Protocol nearest."""

from dataclasses import replace

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

import datadistill as dd
from datadistill.baselines import RandomReal
from datadistill.distillation.problem import make_problem
from datadistill.evaluation.nearest import nearest_labels
from datadistill.evaluation.scores import wilson


@pytest.fixture(scope="module")
def data(digits: dd.RealData) -> dd.DistilledData:
    cpu = torch.device("cpu")
    problem = make_problem(digits, model="mlp", weights="random-init", scheme="xavier", ipc=4, seed=0, device=cpu)
    return RandomReal(2, 2).chosen(0, problem)


def test_it_is_scikit_learns(digits: dd.RealData, data: dd.DistilledData) -> None:
    theirs = KNeighborsClassifier(1).fit(data.images.flatten(1).numpy(), data.labels.numpy())
    images = digits.test.images.flatten(1).numpy()
    assert nearest_labels(data.images, data.labels, digits.test.images).tolist() == theirs.predict(images).tolist()
    score = dd.evaluate(data, digits, protocol="Nearest")
    assert score.accuracy.mean == pytest.approx(theirs.score(images, digits.test.labels.numpy()))


def test_its_score_says_what_was_measured(digits: dd.RealData, data: dd.DistilledData) -> None:
    calls: list[None] = []
    score = dd.evaluate(data, digits, protocol="nearest", split="held_out", count=lambda: calls.append(None))
    assert (score.protocol, score.nets, score.split, score.images) == ("nearest", 1, "held_out", len(digits.held_out))
    assert score.accuracy.std is None
    assert score.accuracy.ci95 == wilson(score.accuracy.mean, len(digits.held_out))
    assert score.before is None
    assert len(calls) == 1


def test_it_needs_no_rates_and_knows_soft_labels(digits: dd.RealData, data: dd.DistilledData) -> None:
    hard = dd.evaluate(data, digits, protocol="nearest").accuracy.mean
    assert dd.evaluate(replace(data, learning_rates=None), digits, protocol="nearest").accuracy.mean == hard
    soft = 0.6 * torch.nn.functional.one_hot(data.labels, 10) + 0.04
    assert dd.evaluate(replace(data, soft_labels=soft), digits, protocol="nearest").accuracy.mean == hard
    other = replace(data, soft_labels=soft.roll(1, 1))
    assert dd.evaluate(other, digits, protocol="nearest").accuracy.mean < 0.1


@pytest.mark.parametrize("options", [{"model": "mlp"}, {"weights": "random-init"}])
def test_networks_have_no_place_in_it(options: dict[str, str], digits: dd.RealData, data: dd.DistilledData) -> None:
    with pytest.raises(dd.RequestError, match="trains no network"):
        dd.evaluate(data, digits, protocol="nearest", **options)  # type: ignore[arg-type]

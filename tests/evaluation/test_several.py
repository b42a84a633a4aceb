"""Several sets judged as one."""

from itertools import pairwise

import pytest
import torch
from scipy import stats

import datadistill as dd
from datadistill.baselines import RandomReal
from datadistill.distillation.problem import make_problem
from datadistill.evaluation import evaluate_sets, nets_per_set


@pytest.fixture(scope="module")
def sets(digits: dd.RealData) -> list[dd.DistilledData]:
    cpu = torch.device("cpu")
    problem = make_problem(digits, model="mlp", weights="random-init", scheme="xavier", ipc=2, seed=0, device=cpu)
    return [RandomReal(2, 2).chosen(number, problem) for number in range(3)]


def test_mean_and_deviation_are_those_of_all_networks(digits: dd.RealData, sets: list[dd.DistilledData]) -> None:
    scores, together = evaluate_sets(sets, digits, nets=11)
    single = [dd.evaluate(data, digits, nets=4, seed=number).accuracy.mean for number, data in enumerate(sets)]
    assert [score.accuracy.mean for score in scores] == single
    values = []
    for number, data in enumerate(sets):
        sums = [nets * dd.evaluate(data, digits, nets=nets, seed=number).accuracy.mean for nets in (1, 2, 3, 4)]
        values += [sums[0], *(after - before for before, after in pairwise(sums))]
    assert together.nets == len(values) == 12
    assert together.accuracy.mean == pytest.approx(sum(values) / 12)
    assert together.accuracy.std == pytest.approx(stats.tstd(values))
    assert together.accuracy.ci95 == pytest.approx(
        stats.t.interval(0.95, 2, loc=together.accuracy.mean, scale=stats.sem(single))
    )
    assert len(together.by_step) == 4
    assert together.by_step[-1] == together.accuracy


def test_one_network_each(digits: dd.RealData, sets: list[dd.DistilledData]) -> None:
    scores, together = evaluate_sets(sets, digits, protocol="nearest")
    assert together.nets == 3
    assert together.before is None
    assert together.accuracy.std == pytest.approx(stats.tstd([score.accuracy.mean for score in scores]))


def test_one_set_is_itself(digits: dd.RealData, sets: list[dd.DistilledData]) -> None:
    scores, together = evaluate_sets(sets[:1], digits, nets=2)
    assert scores == [together]


def test_networks_are_shared_out() -> None:
    assert [nets_per_set(20, sets) for sets in (1, 3, 10, 50)] == [20, 7, 2, 1]

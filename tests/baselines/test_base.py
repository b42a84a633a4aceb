"""Tuning of learning rates."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import start_of

import datadistill as dd
from datadistill.baselines import RandomReal, base
from datadistill.baselines.base import COARSE, SCHEDULES, Rates, held_out_accuracy, tune, tuning_networks
from datadistill.distillation.problem import make_problem
from datadistill.methods import DD, Problem
from datadistill.utils.runtime import stream


def problem(real: dd.RealData, weights: str = "random-init") -> Problem:
    cpu = torch.device("cpu")
    return make_problem(real, model="mlp", weights=weights, scheme="xavier", ipc=2, seed=0, device=cpu)


def test_schedules_fit_a_file() -> None:
    for schedule in SCHEDULES.values():
        shape = schedule(30)
        assert shape[0] == 1
        assert (shape > 0).all()
    assert SCHEDULES["falling"](4).tolist() == [1, 0.75, 0.5, 0.25]


def test_the_best_of_all_that_was_tried_is_kept(digits: dd.RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[tuple[float, ...], float] = {}

    def listening(data: dd.DistilledData, asked: Problem, starts: list[dict[str, torch.Tensor]]) -> float:
        found = held_out_accuracy(data, asked, starts)
        assert data.learning_rates is not None
        if len(starts) == len(tuning_networks(asked)):
            seen[tuple(data.learning_rates.tolist())] = found
        return found

    monkeypatch.setattr(base, "held_out_accuracy", listening)
    (data,) = RandomReal(2, 2).run(problem(digits))
    assert data.learning_rates is not None
    mine = seen[tuple(data.learning_rates.tolist())]
    assert mine == max(seen.values()) == data.provenance.scores[0]["accuracy"]
    assert set(data.provenance.method["held_out"]) == set(SCHEDULES)


def test_rates_that_diverge_never_win(digits: dd.RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = problem(digits)
    data = start_of(DD(steps=2, epochs=2, images="real"), asked, stream(1))
    assert held_out_accuracy(Rates("constant", 1e20).put(data), asked, tuning_networks(asked)) == -1
    monkeypatch.setattr(base, "_NETWORKS", 1)
    poisoned = replace(asked, real=replace(asked.real, held_out=replace(asked.real.held_out, images=_nan(asked))))
    with pytest.raises(dd.DatadistillError, match="every learning rate"):
        tune(data, poisoned)


def _nan(asked: Problem) -> torch.Tensor:
    return torch.full_like(asked.real.held_out.images, torch.nan)


def test_one_step_has_one_schedule_and_a_fixed_start_one_network(digits: dd.RealData) -> None:
    asked = problem(digits, "fixed-init")
    data = tune(start_of(DD(steps=1, epochs=1, images="real"), asked, stream(1)), asked)
    assert data.provenance.method["schedule"] == "constant"
    assert data.provenance.method["tuning_networks"] == 1


def test_coarse_rates_meet_the_fine_ones() -> None:
    """Between two neighbours on the coarse grid no wider gap is left than on the fine one."""
    tried = sorted({near.first for rate in COARSE for near in Rates("constant", rate).nearby()})
    assert max(high / low for low, high in pairwise(tried)) < 10 ** (1 / 8) * 1.001

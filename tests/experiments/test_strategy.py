"""Strategies: what is chosen for some data, number of images and time, and that it runs."""

from pathlib import Path

import pytest

import datadistill as dd
from datadistill.cli.main import main
from datadistill.distillation.config import RunConfig
from datadistill.experiments import strategy
from datadistill.experiments.strategy import choose, first_config
from datadistill.utils.errors import RequestError


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that trains as fast as it needs to."""
    monkeypatch.setattr(strategy, "_seconds_of_training", lambda config, real, model: 1e-5)


def asked(**options: object) -> RunConfig:
    return first_config().changed({"run": {"dataset": "digits", "ipc": 1, **options}})


@pytest.mark.usefixtures("quick")
def test_time_decides_between_features_and_trajectories(digits: dd.RealData) -> None:
    short, long = (choose(asked(budget=budget), digits) for budget in ("1s", "10m"))
    assert (short.config.method.name, short.experts) == ("dm", None)
    assert long.config.method.name == "mtt"
    assert long.experts is not None
    assert len(strategy.EXPERTS) + 2 == long.experts.count
    middle = choose(asked(budget="6s"), digits).experts
    assert middle is not None
    assert 3 <= middle.count < long.experts.count
    assert "experts" in long.why


@pytest.mark.usefixtures("quick")
def test_experts_take_a_third_of_the_time_and_go_as_far_as_students_start(digits: dd.RealData) -> None:
    for ipc, starts in ((1, 3), (10, 8)):
        chosen = choose(asked(ipc=ipc, budget="60s"), digits)
        experts, method = chosen.experts, chosen.config.method
        assert experts is not None
        assert isinstance(method, dd.methods.MTT)
        assert experts.seconds <= strategy.SHARE * 60
        assert experts.training.epochs == starts * method.expert_epochs
        assert method.max_start_epoch + method.expert_epochs == experts.training.epochs
        walk = -(-len(digits.train.images) // int(experts.training.batch))
        assert 60 <= walk * method.expert_epochs <= 120


def test_training_is_timed(digits: dd.RealData) -> None:
    wide, narrow = (strategy._seconds_of_training(asked(), digits, model) for model in ("convnetD1W64", "convnetD1W8"))
    assert wide > narrow > 0


@pytest.mark.usefixtures("quick")
def test_the_network_goes_by_the_images_and_grey_ones_are_not_mirrored(digits: dd.RealData) -> None:
    chosen = choose(asked(budget="1m"), digits)
    assert chosen.config.model == "convnet"
    assert isinstance(chosen.config.method, dd.methods.MTT)
    assert chosen.config.method.matched_on == "convnetw32"
    assert "flip" not in chosen.config.method.augment
    own = choose(asked(budget="1m", model="mlp"), digits)
    assert isinstance(own.config.method, dd.methods.MTT)
    assert own.config.method.matched_on == "same"


def test_other_weights_are_refused(digits: dd.RealData) -> None:
    with pytest.raises(RequestError, match="name a --method for anything else"):
        choose(asked(weights="fixed-init"), digits)


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    monkeypatch.setattr(strategy, "_seconds_of_training", lambda config, real, model: 1e-8)
    monkeypatch.setattr(strategy, "EXPERTS", range(2, 3))
    words = ["distill", "--dataset", "digits", "--model", "convnetD1W8", "--ipc", "1", "--nets", "1"]
    assert main([*words, "--budget", "4s", "--out", "run"]) == 0
    assert "taking trajectories (mtt) of 2 experts" in capsys.readouterr().err
    made = dd.load_distilled("run")
    assert made.provenance.method["name"] == "mtt"
    assert "--ipc 1" in made.provenance.recipe
    assert main(["distill", "--resume", "--out", "run", "--nets", "1"]) == 0
    assert main([*words, "--method", "auto", "--steps", "3", "--out", "other"]) == 2
    assert "--steps is a flag of a method: name it with --method, not auto" in capsys.readouterr().err

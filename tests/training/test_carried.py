"""The recipe that distilled data carries, in files of format 1 and 2."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import datadistill as dd
from datadistill.baselines import RandomReal
from datadistill.cli.main import main
from datadistill.distillation.problem import make_problem
from datadistill.distillation.validation import held_out
from datadistill.evaluation import work_of
from datadistill.methods import Problem
from datadistill.report.card import make_card
from datadistill.training.carried import in_format_1, inner_of, own_steps, read_inner, recipe_of, shared_recipe
from datadistill.training.recipe import DC, OWN_STEPS, TrainRecipe
from datadistill.utils.runtime import versions

ADAM = TrainRecipe(0, 0.005, 20, steps=100, schedule="constant")
"""By Adam at a fixed rate, for a number of steps on shuffled batches."""


@pytest.fixture(scope="module")
def problem(digits: dd.RealData) -> Problem:
    cpu = torch.device("cpu")
    return make_problem(digits, model="mlp", weights="random-init", scheme="xavier", ipc=10, seed=0, device=cpu)


def trained_by(problem: Problem, recipe: TrainRecipe, **changes: Any) -> dd.DistilledData:
    """Random real images in two batches, to be trained on by a recipe."""
    data = RandomReal(2, 2).chosen(0, problem)
    scores = [{"split": "held_out", "accuracy": 0.5}]
    cost = {"outer_steps": 0, "seconds": 0.0, "device": "cpu", "threads": 1, "peak_bytes": 0}
    made = {"versions": versions(), "cost": cost, "scores": scores}
    provenance = replace(data.provenance, inner=recipe.as_json(), **made)
    return replace(data, **{"learning_rates": None, "provenance": provenance, **changes})


@pytest.fixture
def place(problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    trained_by(problem, ADAM).save("set.safetensors")
    return "set.safetensors"


def header_of(path: str) -> dict[str, Any]:
    with safe_open(path, framework="numpy") as opened:
        return dict(json.loads(opened.metadata()["datadistill"]))


def test_a_file_holds_the_whole_recipe(place: str) -> None:
    header = header_of(place)
    assert header["format"] == 2
    assert "inner" not in header
    assert header["training"] == ADAM.as_json()
    assert recipe_of(dd.load_distilled(place)) == ADAM


def test_it_is_judged_by_its_own_recipe(place: str, problem: Problem, digits: dd.RealData) -> None:
    data, pieces = dd.load_distilled(place), list[None]()
    score = dd.evaluate(data, digits, nets=2, count=lambda: pieces.append(None))
    assert score.accuracy.mean > 0.7
    assert score.before is not None
    assert score.before.mean < 0.3
    assert (score.protocol, score.weights) == ("own", "random-init (xavier)")
    assert score.training == "100 steps, rate 0.005, adam, no augmentation"
    assert len(pieces) == work_of(data, 2) == 2 * 20
    again = dd.evaluate(data, digits, nets=2)
    assert again.accuracy == score.accuracy
    assert held_out(problem, data).correct > 0.7
    assert "| protocol | own: 100 steps, rate 0.005, adam, no augmentation |" in make_card(
        data, score, "set.safetensors"
    )


def test_the_commands_take_it(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", place, "--nets", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["settings"] == ADAM.as_json()
    assert main(["compare", place, "--baselines", "random", "--nets", "2", "--json"]) == 0
    mine, theirs = json.loads(capsys.readouterr().out)["results"]
    assert mine["settings"] == theirs["settings"]
    assert (theirs["set"], theirs["distilled_images"]) == ("random", 100)
    assert main(["audit", place, "--nets", "1", "--train-epochs", "1"]) in (0, 1)


@pytest.mark.parametrize(
    "recipe", [DC, OWN_STEPS, ADAM, TrainRecipe(loss="kl", temperature=2.0), TrainRecipe(batch="stored")], ids=str
)
def test_what_is_written_is_read(recipe: TrainRecipe) -> None:
    assert read_inner(json.loads(json.dumps(inner_of(recipe)))) == recipe
    assert read_inner(recipe.as_json()) == recipe


def test_format_1_says_what_it_can(problem: Problem, digits: dd.RealData, tmp_path: Path) -> None:
    constant = trained_by(problem, replace(OWN_STEPS, epochs=3, lr=0.05))
    falling = trained_by(problem, replace(OWN_STEPS, steps=4), learning_rates=torch.tensor([0.1, 0.05, 0.02, 0.01]))
    learned = trained_by(problem, replace(DC, epochs=5, lr="learned"), learning_rates=torch.tensor([0.02]))
    condensed = trained_by(problem, replace(DC, epochs=5, augment="crop"))
    for number, data in enumerate((constant, falling, learned, condensed)):
        path = tmp_path / f"{number}.safetensors"
        assert dd.export_to(data, "1", path) == []
        assert header_of(str(path))["format"] == 1
        back = dd.import_from(path)
        assert in_format_1(back) is back
        one, other = (dd.evaluate(each, digits, nets=2, scheme="normal").accuracy.mean for each in (data, back))
        assert one == pytest.approx(other, abs=1e-3)
    assert header_of(str(tmp_path / "0.safetensors"))["inner"] == own_steps(2, 3)
    assert recipe_of(dd.load_distilled(tmp_path / "2.safetensors")).lr == pytest.approx(0.02)


@pytest.mark.parametrize(
    "recipe",
    [ADAM, replace(DC, loss="mse"), replace(OWN_STEPS, steps=3, lr=0.1), replace(OWN_STEPS, momentum=0.9)],
    ids=str,
)
def test_format_1_refuses_what_it_cannot_say(problem: Problem, recipe: TrainRecipe, tmp_path: Path) -> None:
    with pytest.raises(dd.RequestError, match="leave it in format 2"):
        dd.export_to(trained_by(problem, recipe), "1", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_baselines_are_trained_on_alike(problem: Problem) -> None:
    assert shared_recipe(trained_by(problem, ADAM)) == ADAM
    assert shared_recipe(trained_by(problem, replace(OWN_STEPS, epochs=2))) is None
    assert shared_recipe(RandomReal(2, 2).chosen(0, problem)) is None
    for recipe in (replace(ADAM, lr="learned"), replace(ADAM, batch="stored")):
        with pytest.raises(dd.RequestError, match="baselines bring no rates"):
            shared_recipe(trained_by(problem, recipe))


def test_what_layers_with_running_statistics_do_is_kept(problem: Problem) -> None:
    data = trained_by(problem, DC)
    inner = data.provenance.inner | {"batch_norm": "batch"}
    data = replace(data, provenance=replace(data.provenance, inner=inner))
    assert recipe_of(data) == DC
    assert in_format_1(data).provenance.inner["batch_norm"] == "batch"


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"lr": "fast"}, "must be a number or learned"),
        ({"batch": 2.5}, "must be a whole number or stored"),
        ({"epochs": True}, "must be a whole number"),
        ({"loss": 3}, "must be cross-entropy or mse or kl"),
        ({"loss": "hinge"}, "must be cross-entropy or mse or kl"),
        ({"cutmix": 1.0}, "'cutmix' is unknown"),
    ],
    ids=str,
)
def test_settings_that_a_file_may_not_have(problem: Problem, training: dict[str, Any], words: str) -> None:
    data = trained_by(problem, ADAM)
    data = replace(data, provenance=replace(data.provenance, inner=ADAM.as_json() | training))
    with pytest.raises(dd.RequestError, match=words):
        recipe_of(data)


def test_a_file_of_format_2_has_a_recipe(place: str) -> None:
    for training in ({}, {"epochs": 3}, "adam"):
        data = dd.load_distilled(place)
        header = header_of(place) | {"training": training}
        with pytest.raises(dd.DamagedFileError):
            dd.distilled.parse_distilled(data.tensors(), {"datadistill": json.dumps(header)})

"""Protocol `dc`: fresh networks, trained for many epochs."""

import copy
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch

import datadistill as dd
from datadistill.baselines import BASELINES, RandomReal, full_dataset
from datadistill.cli.main import main
from datadistill.distillation.problem import make_problem
from datadistill.distillation.validation import held_out
from datadistill.engine import make_network
from datadistill.evaluation import accuracy_of, evaluate_sets, work_of
from datadistill.methods import Problem
from datadistill.models import create_model, draw_weights
from datadistill.training.carried import dc_recipe, inner_of
from datadistill.training.fit import fit, walks_of
from datadistill.training.recipe import DC, TrainRecipe
from datadistill.utils.runtime import stream

SHORT = replace(DC, epochs=20)


@pytest.fixture(scope="module")
def problem(digits: dd.RealData) -> Problem:
    cpu = torch.device("cpu")
    return make_problem(digits, model="mlp", weights="random-init", scheme="default", ipc=10, seed=0, device=cpu)


def made_for(problem: Problem, recipe: TrainRecipe, rates: torch.Tensor | None = None) -> dd.DistilledData:
    """Random real images as a method makes them that leaves the rates to the protocol."""
    data = RandomReal().chosen(0, problem)
    provenance = replace(data.provenance, inner=inner_of(recipe), scores=[{"split": "held_out", "accuracy": 0.5}])
    return replace(data, learning_rates=rates, provenance=provenance)


@pytest.fixture(scope="module")
def data(problem: Problem) -> dd.DistilledData:
    return made_for(problem, SHORT)


def by_torch(digits: dd.RealData, data: dd.DistilledData, epochs: int, batch: int) -> tuple[torch.nn.Module, Any]:
    """The code of Zhao et al. in their own words, with batches as datadistill draws them."""
    module = create_model("mlp", digits)
    start = draw_weights(module, "default", stream(0, "evaluation", 3))
    module = copy.deepcopy(module)
    module.load_state_dict(start)
    draws, rate = stream(0, "evaluation-training", 3), 0.01

    def descent() -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9, weight_decay=0.0005)

    optimizer = descent()
    for epoch in range(epochs + 1):
        order = torch.randperm(len(data.labels), generator=draws)
        for first in range(0, len(order), batch):
            chosen = order[first : first + batch]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(data.images[chosen]), data.targets[chosen]).backward()
            optimizer.step()
        if epoch == epochs // 2 + 1:
            rate *= 0.1
            optimizer = descent()
    return module, start


@pytest.mark.parametrize("epochs", [1, 2, 5, 20])
def test_it_is_the_loop_of_the_authors_code(digits: dd.RealData, data: dd.DistilledData, epochs: int) -> None:
    theirs, start = by_torch(digits, data, epochs, 32)
    recipe = replace(SHORT, epochs=epochs, batch=32)
    network = make_network(create_model("mlp", digits))
    mine = fit(network, start, data, recipe, stream(0, "evaluation-training", 3))
    for name, weight in theirs.named_parameters():
        assert torch.allclose(mine[name], weight, atol=1e-5)
        assert not torch.allclose(mine[name], start[name], atol=1e-4)
    assert walks_of(recipe, data) == epochs + 1


def test_the_rate_falls_where_it_falls_there() -> None:
    assert (DC.restart(walk=3), DC.steps_in(walk=3)) == (152 * 3, (152 + 149) * 3)
    assert [DC.factor(step, walk=3) for step in (0, 152 * 3 - 1, 152 * 3, 301 * 3 - 1)] == [1.0, 1.0, 0.1, 0.1]


def test_a_network_does_not_depend_on_the_others(digits: dd.RealData, data: dd.DistilledData) -> None:
    sums = [nets * dd.evaluate(data, digits, nets=nets).accuracy.mean for nets in (3, 4)]
    theirs, _ = by_torch(digits, data, 20, 256)
    network = make_network(theirs)
    weights = {name: weight.detach() for name, weight in theirs.named_parameters()}
    # Within 0.05 points of the plain loop.
    assert sums[1] - sums[0] == pytest.approx(accuracy_of(network, weights, digits.test).correct, abs=5e-4)
    torch.set_num_threads(2)
    for nets, expected in ((3, sums[0] / 3), (4, sums[1] / 4)):
        assert dd.evaluate(data, digits, nets=nets).accuracy.mean == expected


def test_it_teaches_and_says_how(digits: dd.RealData, data: dd.DistilledData) -> None:
    pieces: list[None] = []
    score = dd.evaluate(data, digits, nets=2, protocol="dc", epochs=100, count=lambda: pieces.append(None))
    assert score.accuracy.mean > 0.75
    assert score.before is not None
    assert score.before.mean < 0.3
    assert score.weights == "random-init (default)"
    assert score.training == "100 epochs, rate 0.01, no augmentation"
    assert len(pieces) == work_of(data, 2, "dc", epochs=100) == 202


def test_own_is_the_protocol_of_the_data(digits: dd.RealData, data: dd.DistilledData) -> None:
    own, same = (dd.evaluate(data, digits, nets=2, protocol=protocol) for protocol in ("own", "dc"))
    assert replace(own, seconds=0.0) == replace(same, seconds=0.0)
    assert own.settings == inner_of(SHORT)


def test_any_data_can_be_judged_by_it(digits: dd.RealData, problem: Problem) -> None:
    plain = RandomReal().chosen(0, problem)
    soft = replace(plain, soft_labels=torch.eye(10)[plain.labels], labels=plain.labels.roll(1))
    saved = {name: weight.detach() * torch.nan for name, weight in problem.network.module.named_parameters()}
    fixed = replace(soft, initial_weights=saved)
    scores = [dd.evaluate(one, digits, protocol="dc", nets=2, epochs=20) for one in (plain, soft, fixed)]
    assert scores[0].accuracy == scores[1].accuracy == scores[2].accuracy
    assert scores[0].training.startswith("20 epochs, rate 0.01")


def test_settings_of_the_data_and_of_the_caller(problem: Problem) -> None:
    plain = RandomReal().chosen(0, problem)
    assert dc_recipe(plain) == DC
    assert dc_recipe(plain, augment="Crop_flip").epochs == 1000
    assert dc_recipe(plain, augment="crop", epochs=7) == replace(DC, epochs=7, augment="crop")
    dsa = made_for(problem, replace(DC, epochs=900, augment="flip"), torch.tensor([0.25]))
    assert dc_recipe(dsa) == replace(DC, epochs=900, augment="flip", lr=0.25)
    assert dc_recipe(dsa, augment="crop").epochs == 900
    assert dc_recipe(dsa, augment="none", rate=0.5) == replace(DC, lr=0.5)
    inner = dsa.provenance.inner | {"rate": 0.125, "takes_learned_rate": False}
    said = replace(dsa, provenance=replace(dsa.provenance, inner=inner))
    assert dc_recipe(said).lr == 0.125


def test_augmentation_is_used(digits: dd.RealData, data: dd.DistilledData) -> None:
    plain, moved = (
        dd.evaluate(data, digits, protocol="dc", nets=1, epochs=20, augment=augment) for augment in ("none", "crop")
    )
    assert plain.accuracy.mean != moved.accuracy.mean
    assert moved.training == "20 epochs, rate 0.01, augmentation crop"


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        ({"epochs": "many"}, "must be a whole number"),
        ({"epochs": 0}, "at least 1"),
        ({"epochs": True}, "must be a whole number"),
        ({"rate": [1]}, "must be a number"),
        ({"rate": 10**400}, "must be a number"),
        ({"augment": 3}, "must be text"),
        ({"augment": "turn"}, "augmentation"),
        ({"optimizer": "adam"}, "made with 'adam'"),
        ({"loss": None}, "made with None"),
        ({"takes_learned_rate": 1}, "must be true or false"),
    ],
    ids=str,
)
def test_settings_that_a_file_may_not_have(data: dd.DistilledData, inner: dict[str, Any], words: str) -> None:
    provenance = replace(data.provenance, inner=inner_of(SHORT) | inner)
    with pytest.raises(dd.RequestError, match=words):
        dc_recipe(replace(data, provenance=provenance))


def test_it_has_no_steps(digits: dd.RealData, problem: Problem, pool: dd.Pool) -> None:
    for rates in (None, torch.tensor([0.01])):
        with pytest.raises(dd.RequestError, match="protocol dc"):
            made_for(problem, SHORT, rates).inner_steps()
    bare = replace(RandomReal().chosen(0, problem), learning_rates=None)
    with pytest.raises(dd.RequestError, match="protocol dc"):
        dd.evaluate(bare, digits)
    with pytest.raises(dd.RequestError, match="take no pool"):
        dd.evaluate(bare, digits, protocol="dc", pool=pool)


def test_several_sets(digits: dd.RealData, data: dd.DistilledData) -> None:
    scores, together = evaluate_sets([data, data], digits, nets=4, protocol="dc", epochs=5)
    assert [score.nets for score in scores] == [2, 2]
    assert together.training == "5 epochs, rate 0.01, no augmentation"


def test_it_can_be_interrupted(digits: dd.RealData, data: dd.DistilledData) -> None:
    """Networks take minutes: none is finished before the program ends."""
    torch.set_num_threads(2)
    counted: list[None] = []

    def count() -> None:
        counted.append(None)
        if len(counted) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        dd.evaluate(data, digits, nets=3, protocol="dc", epochs=10**8, count=count)


def test_looks_are_shorter(problem: Problem, data: dd.DistilledData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datadistill.distillation.validation.CONDENSED_EPOCHS", 15)
    long, short = (made_for(problem, replace(DC, epochs=epochs)) for epochs in (30, 15))
    assert held_out(problem, long) == held_out(problem, short)
    assert held_out(problem, short) != held_out(problem, short, purpose="other")
    shorter = made_for(problem, replace(DC, epochs=5))
    assert held_out(problem, shorter) != held_out(problem, short)


@pytest.fixture
def place(data: dd.DistilledData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    data.save("set.safetensors")
    return "set.safetensors"


def test_the_command(place: str, digits: dd.RealData, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--nets", "2"]
    assert main(["evaluate", place, *quick, "--json"]) == 0
    own = json.loads(capsys.readouterr().out)["results"][0]
    words = ["--protocol", "DC", "--epochs", "10", "--augment", "crop", "--rate", "0.1"]
    assert main(["evaluate", place, *quick, *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"][0]
    assert own["settings"] == inner_of(SHORT)
    assert found["settings"] == inner_of(replace(SHORT, epochs=10, augment="crop", lr=0.1))
    expected = dd.evaluate(dd.load_distilled(place), digits, nets=2, epochs=10, augment="crop", rate=0.1, protocol="dc")
    assert found["accuracy"]["mean"] == expected.accuracy.mean
    assert main(["evaluate", place, *quick]) == 0
    assert "protocol own: 20 epochs, rate 0.01, no augmentation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--epochs", "5"], "epochs is 5, but protocol own has no such setting: add --protocol dc"),
        (["--protocol", "nearest", "--augment", "crop"], "augment is crop, but protocol nearest has no such setting"),
        (["--protocol", "dc", "--augment", "crops"], "crop"),
        (["--protocol", "dc", "--rate", "0"], "must be positive"),
        (["--protocol", "dc", "--epochs", "0"], "at least 1"),
        (["--protocol", "cd"], "protocol"),
    ],
    ids=str,
)
def test_wrong_commands(place: str, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("evaluate", "compare"):
        assert main([command, place, *words]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1
        assert sentence in captured.err


def test_the_audit_refuses_it(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", place, "--nets", "1", "--train-epochs", "1"]) == 2
    assert "protocol dc" in capsys.readouterr().err


@pytest.mark.parametrize("how", [name for name in BASELINES.names() if name != "optimized"])
def test_baselines_for_it_tune_nothing(how: str, problem: Problem) -> None:
    recipe = replace(DC, epochs=3, augment="crop")
    first = BASELINES.get(how)(recipe=recipe).run(replace(problem, ipc=3))[0]
    assert dc_recipe(first) == recipe
    assert first.learning_rates is None
    assert first.batches.tolist() == [list(range(len(first.labels)))]
    assert len(first.labels) == (10 if how == "average" else 30)


def test_the_whole_dataset_in_its_place(digits: dd.RealData, problem: Problem) -> None:
    data = full_dataset(problem, replace(DC, epochs=3))
    assert len(data.labels) == len(digits.train) + len(digits.held_out)
    assert dd.evaluate(data, digits, nets=1).accuracy.mean > 0.4


def test_the_baseline_command(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dataset", "digits", "--model", "mlp", "--ipc", "3", "--protocol", "dc"]
    assert main(["baseline", *words, "--epochs", "5", "--augment", "crop", "--nets", "2", "--out", "chosen"]) == 0
    assert "random: 30 images, protocol dc: 5 epochs, rate 0.01, augmentation crop" in capsys.readouterr().out
    first = dd.load_distilled("chosen")
    assert dc_recipe(first) == replace(DC, epochs=5, augment="crop")
    assert first.provenance.weights["scheme"] == "default"
    assert main([*first.provenance.recipe.split()[1:], "--nets", "1", "--out", "again"]) == 0
    assert torch.equal(first.images, dd.load_distilled("again").images)
    capsys.readouterr()
    for wrong in (["--steps", "2"], ["--how", "optimized"], ["--weights", "fixed-init"], ["--rate", "-1"]):
        assert main(["baseline", *words, *wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["baseline", *words[:-2], "--augment", "crop"]) == 2
    assert "does not go with protocol own" in capsys.readouterr().err


def test_compared_with_baselines_and_the_full_dataset(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    mine = dd.load_distilled(place)
    replace(mine, provenance=replace(mine.provenance, cost={"seconds": 12.5})).save(place)
    words = ["--nets", "2", "--baselines", "random,average", "--full-epochs", "2"]
    assert main(["compare", place, *words, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [entry["set"] for entry in results] == [place, "random", "average", "full dataset, 2 epochs"]
    assert [entry["distilled_images"] for entry in results] == [100, 100, 10, 1438]
    assert [entry["settings"]["epochs"] for entry in results] == [20, 20, 20, 2]
    assert [entry["nets"] for entry in results] == [2, 2, 2, 1]
    assert results[0]["bytes"] == Path(place).stat().st_size
    assert results[0]["making_seconds"] == 12.5
    assert [entry["bytes"] for entry in results[1:]] == [pytest.approx(results[0]["bytes"], rel=0.1), ANY, None]
    assert results[2]["bytes"] < results[1]["bytes"]
    assert results[1]["making_seconds"] > 0
    assert results[3]["making_seconds"] is None
    assert main(["compare", place, *words]) == 0
    assert "digits, protocol own: 20 epochs, rate 0.01, no augmentation" in capsys.readouterr().out
    assert main(["compare", place, "--protocol", "nearest", "--full-epochs", "2"]) == 2
    assert "add --protocol dc" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--augment", "crop"], marks=pytest.mark.slow, id="augmented for 1000 epochs"),
        ["--augment", "crop", "--epochs", "3"],
        ["--rate", "0.1"],
        ["--augment", "none", "--epochs", "3"],
    ],
    ids=" ".join,
)
def test_baselines_are_judged_as_the_sets_are(
    place: str, digits: dd.RealData, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    method = dd.methods.DD(steps=1, epochs=1, batch=64, networks=1)
    common: dict[str, Any] = {"model": "mlp", "weights": "random-init", "iterations": 1, "device": "cpu"}
    dd.distill(digits, method, **common, out="steps")
    for one in (place, "steps"):
        words = ["--protocol", "dc", "--baselines", "random,average", "--nets", "1", *flags]
        assert main(["compare", one, *words, "--json"]) == 0
        mine, *baselines = json.loads(capsys.readouterr().out)["results"]
        assert [entry["settings"] for entry in baselines] == [mine["settings"]] * 2
        given = dict(zip([flag[2:] for flag in flags[::2]], flags[1::2], strict=True))
        assert {name: str(mine["settings"][name]) for name in given} == given


def test_rows_that_are_judged_differently_say_so(
    place: str, digits: dd.RealData, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datadistill.baselines.base._NETWORKS", 2)
    common: dict[str, Any] = {"model": "mlp", "weights": "random-init", "iterations": 1, "device": "cpu"}
    for steps in (1, 2):
        method = dd.methods.DD(steps=steps, epochs=1, batch=64, networks=1)
        dd.distill(digits, method, **common, ipc=2, out=f"steps-{steps}")
    words = ["--baselines", "random", "--nets", "1", "--json"]
    assert main(["compare", "steps-1", "steps-2", *words]) == 0
    names = [entry["set"] for entry in json.loads(capsys.readouterr().out)["results"]]
    assert names == ["steps-1", "steps-2", "random, 1 steps, 1 epochs", "random, 2 steps, 1 epochs"]
    assert main(["compare", "steps-1", place, "--nets", "1"]) == 0
    rows = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert " ".join(rows) == f"steps-1, steps of its own {place}, 20 epochs, rate 0.01, no augmentation"


def test_the_baseline_command_needs_no_steps_for_protocol_dc(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dataset", "digits", "--model", "mlp", "--weights", "random-init", "--protocol", "dc", "--nets", "1"]
    for ipc in ([], ["--ipc", "1"]):
        out = "".join(["one", *ipc])
        assert main(["baseline", *words, *ipc, "--out", out]) == 0
        data = dd.load_distilled(out)
        assert (len(data.labels), dc_recipe(data)) == (10, DC)
    assert "random: 10 images, protocol dc: 300 epochs" in capsys.readouterr().out


def test_several_networks_in_one_table(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--models", "mlp,ConvNetD1W16", "--nets", "2", "--protocol", "dc", "--epochs", "2"]
    assert main(["evaluate", place, *words]) == 0
    head = next(line for line in capsys.readouterr().out.splitlines() if "mlp" in line)
    assert "convnetd1w16" in head


def test_a_run_that_makes_such_data(digits: dd.RealData, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dataset", "digits", "--model", "mlp", "--method", "dm", "--augment", "none", "--ipc", "1"]
    words += ["--iterations", "2", "--outer-eval-every", "2", "--nets", "1", "--outer-settle", "50"]
    assert main(["distill", *words, "--out", "run"]) == 0
    captured = capsys.readouterr()
    assert "after 300 epochs, rate 0.01, no augmentation" in captured.out
    assert "choosing between" not in captured.err
    card = Path("run/README.md").read_text()
    assert "dc: 300 epochs, rate 0.01, no augmentation, batches of 256" in card
    assert "rates[step]" not in card
    assert "DataLoader(data.as_dataset(), 256, shuffle=True)" in card

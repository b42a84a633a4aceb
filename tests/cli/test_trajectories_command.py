"""pretrain --trajectories, and --trajectories in the commands that take them."""

import json
from pathlib import Path

import pytest

import datadistill as dd
from datadistill.cli.main import main

SMALL = ["--trajectories", "--dataset", "digits", "--model", "mlp", "--nets", "2", "--epochs", "3", "--batch", "64"]
EXPERTS = [*SMALL, "--augment", "crop_scale", "--device", "cpu"]
PROBLEM = ["--method", "mtt", "--dataset", "digits", "--model", "mlp", "--student-steps", "2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)


def test_a_table_and_what_to_type_next(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", *EXPERTS]) == 0
    out, err = capsys.readouterr()
    assert "2 experts, 4 times each, take 0.4 MB." in err
    found = dd.load_trajectories("trajectories/digits-mlp")
    assert f"{100 * sum(found.facts.accuracies) / 2:.2f} %" in out
    assert (found.facts.scheme, found.facts.training.optimizer, found.facts.training.lr) == ("default", "sgd", 0.01)
    (line,) = [line for line in out.splitlines() if line.startswith("distil ")]
    words = line.split("datadistill ")[1].split()
    quick = ["--iterations", "2", "--augment", "none", "--student-steps", "2", "--nets", "1", "--device", "cpu"]
    assert main([*words, *quick, "--max-start-epoch", "0", "--out", "run"]) == 0
    made = dd.load_distilled("run").provenance
    assert made.method["trajectories"]["digest"] == found.digest
    assert made.method["max_start_epoch"] == 0
    resumed = ["distill", "--resume", "--out", "run", "--nets", "1"]
    assert main(resumed) == 2
    said = "names the trajectories trajectories/digits-mlp, which is a path: say --trajectories"
    assert said in capsys.readouterr().err
    assert main([*resumed, "--trajectories", "trajectories/digits-mlp"]) == 0


def test_the_recorded_command_makes_the_same_experts() -> None:
    assert main(["pretrain", *EXPERTS, "--seed", "3", "--out", "a"]) == 0
    first = dd.load_trajectories("a")
    words = first.facts.recipe.split()
    assert words[:2] == ["datadistill", "pretrain"]
    assert main([*words[1:], "--out", "b"]) == 0
    assert dd.load_trajectories("b").digest == first.digest


def test_check_and_plan_take_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", *EXPERTS]) == 0
    capsys.readouterr()
    given = [*PROBLEM, "--trajectories", "trajectories/digits-mlp", "--augment", "crop_color"]
    assert main(["check", *given, "--directions", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["method"], document["passed"], document["exact"]) == ("mtt", True, True)
    assert main(["plan", *given, "--storage", "recompute", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["inner_steps"] == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pretrain", *EXPERTS, "--max-gb", "0.0001"], "but 0.0001 GB are allowed"),
        (["pretrain", *EXPERTS, "--reserved", "1"], "--reserved and --test are for pools"),
        (["distill", *PROBLEM], "make them with `datadistill pretrain --trajectories`"),
        (["distill", *PROBLEM, "--trajectories", "nowhere"], "no expert trajectories in nowhere"),
        (["check", *PROBLEM, "--weights", "fixed-init"], "method mtt needs expert trajectories"),
        (["distill", *PROBLEM, "--steps", "2"], "--steps is a flag of method dd, not of mtt"),
    ],
)
def test_wrong_requests_are_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error

"""Runs that are made longer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import datadistill as dd
from datadistill.cli.main import main
from datadistill.distillation.run_folder import RunFolder
from datadistill.methods import METHODS

OUTER = dd.Outer(lr=0.03, schedule="constant", eval_every=10)
METHOD = dd.methods.DD(images="mean", batch=64)


def run(real: dd.RealData, out: Path, iterations: int, method: Any = METHOD, **options: Any) -> dd.Run:
    options = {"outer": OUTER, "device": "cpu", "command": f"distill --iterations {iterations}"} | options
    return dd.distill(real, method, model="mlp", out=out, iterations=iterations, **options)


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["held_out_loss"]) for entry in RunFolder(folder).metrics()]


@pytest.mark.parametrize("first", [5, 20, 25], ids=["before any look", "at a look", "between two looks"])
def test_a_longer_run_is_one_that_was_asked_for_at_once(first: int, digits: dd.RealData, tmp_path: Path) -> None:
    whole = run(digits, tmp_path / "whole", 40)
    run(digits, tmp_path / "run", first)
    longer = run(digits, tmp_path / "run", 40, resume=True)
    assert longer.steps == 40
    assert torch.equal(longer.distilled.images, whole.distilled.images)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    documents = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("run", "whole")]
    assert documents[0] == documents[1], "the command that makes the same is the longer one"
    assert longer.distilled.provenance.recipe == "distill --iterations 40"
    saved = [dd.load_distilled(tmp_path / name) for name in ("run", "whole")]
    assert torch.equal(saved[0].images, saved[1].images)
    assert run(digits, tmp_path / "run", 40, resume=True).steps == 40


class Asking(dd.methods.DD):
    """A method that looks at how much of the run is done."""

    def step(self, distilled: Any, state: Any, context: Any, generator: Any) -> Any:
        assert 0 <= context.progress < 1
        return super().step(distilled, state, context, generator)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"outer": replace(OUTER, schedule="cosine")}, "its schedule cosine follows the number of outer steps"),
        ({"outer": replace(OUTER, warmup=0.1)}, "its warm-up is a share of all outer steps"),
        ({"budget": "10m"}, "it goes by the clock"),
        ({"method": Asking(images="mean", batch=64)}, "method dd asks how much of the run is done"),
        ({"method": METHODS.get("random_teacher").build({}), "weights": "random-init"}, "takes no outer steps"),
    ],
)
def test_what_goes_by_the_length_cannot_be_made_longer(
    changes: dict[str, Any], reason: str, digits: dd.RealData, tmp_path: Path
) -> None:
    first = run(digits, tmp_path, 5, **changes)
    with pytest.raises(dd.RequestError, match=f"cannot be made longer: .*{reason}"):
        run(digits, tmp_path, 10, resume=True, **changes)
    again = run(digits, tmp_path, 5, resume=True, **changes)
    assert torch.equal(first.distilled.images, again.distilled.images)


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    words = ["distill", "--dataset", "digits", "--model", "mlp", "--batch", "64", "--nets", "1"]
    resumed = ["distill", "--resume", "--out", "run", "--nets", "1"]
    assert (
        main([*words, "--iterations", "3", "--outer-schedule", "constant", "--outer-warmup", "0", "--out", "run"]) == 0
    )
    capsys.readouterr()
    assert main(resumed) == 0
    assert "the run in run is finished after 3 outer steps: a larger --iterations makes it" in capsys.readouterr().err
    assert main([*resumed, "--budget", "5s"]) == 2
    assert "budget is not given there and 5.0 here; leave that out" in capsys.readouterr().err
    assert main([*resumed, "--iterations", "5"]) == 0
    assert "--iterations 5" in dd.load_distilled("run").provenance.recipe
    assert main([*words, "--iterations", "3", "--out", "falling"]) == 0
    assert main(["distill", "--resume", "--out", "falling", "--iterations", "5"]) == 2
    assert "schedule cosine" in capsys.readouterr().err.splitlines()[-1]


def test_data_that_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], digits: dd.RealData
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    data = dd.distill(digits, METHOD, model="mlp", iterations=1).distilled
    for recorded, kind in (("photos", "folder"), ("/nowhere/photos", "folder"), ("a/photos.npz", "file")):
        replace(data, provenance=replace(data.provenance, dataset=recorded)).save(Path("set.safetensors"))
        for command in (["evaluate"], ["compare"], ["audit"]):
            assert main([*command, "set.safetensors"]) == 2
            said = capsys.readouterr().err
            assert f"it was made from the {kind} {recorded}, which is not here: give --dataset" in said

"""Run folders whose files say what they cannot mean, with checksums that are right all the same."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import datadistill as dd
from datadistill.distillation.run_folder import Checkpoint, RunFolder
from datadistill.report.curve import save_curve
from datadistill.utils.errors import DamagedFileError, DatadistillError
from datadistill.utils.files import read_tensors


@pytest.fixture(scope="module")
def whole(digits: dd.RealData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run(digits, folder)
    (folder / "checkpoint" / "step-000000006.safetensors").unlink()
    return folder


def run(digits: dd.RealData, folder: Path, resume: bool = False) -> None:
    outer = dd.Outer(eval_every=2)
    dd.distill(digits, dd.methods.DD(batch=32), model="mlp", iterations=6, outer=outer, out=folder, resume=resume)


def changed(tensors: dict[str, Tensor], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: change(tensor) if name == "variables.values:images" else tensor for name, tensor in tensors.items()}


def without(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if part not in name}


TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "shape": (lambda tensors: changed(tensors, lambda tensor: tensor[:-1]), "is torch.float32 .*, not torch.float32"),
    "type": (lambda tensors: changed(tensors, lambda tensor: tensor.half()), "is torch.float16"),
    "nan": (lambda tensors: changed(tensors, lambda tensor: tensor * torch.nan), "is not finite"),
    "names": (
        lambda tensors: {n: t for n, t in tensors.items() if n != "variables.values:images"},
        "instead of images",
    ),
    "moments": (lambda tensors: {n: t for n, t in tensors.items() if ".moments" not in n}, "it holds  instead of"),
}
FACTS: dict[str, Any] = {
    "step": "3",
    "seconds": -1,
    "norm": None,
    "remarks": 3,
    "best": [1, 2],
    "loss_sum": [],
    "good": 0,
}


@pytest.mark.parametrize("kind", [*TENSORS, *FACTS, "list"])
def test_a_checkpoint_of_another_run_is_refused(kind: str, whole: Path, digits: dd.RealData, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    path = folder / "checkpoint" / "step-000000004.safetensors"
    tensors, metadata = read_tensors(path)
    facts, sentence = json.loads(metadata["checkpoint"]), kind
    if kind in TENSORS:
        change, sentence = TENSORS[kind]
        tensors = change(tensors)
    elif kind in FACTS:
        facts[kind] = FACTS[kind]
    else:
        facts, sentence = [], "no(t)? .*object"
    RunFolder(folder).save(4, Checkpoint(tensors, facts))
    with pytest.raises(DamagedFileError, match=f"the checkpoint in .* is not of this run: .*{sentence}"):
        run(digits, folder, resume=True)


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("outer", "lr", "fast"),
        ("outer", "betas", 3),
        ("engine", "storage", 5),
        ("method", "steps", "one"),
        ("method", "learning_rate", []),
        ("outer", "eval_every", None),
        ("", "iterations", [3]),
    ],
)
def test_settings_of_other_types_are_refused(group: str, name: str, value: Any, whole: Path, tmp_path: Path) -> None:
    document = json.loads((whole / "config.json").read_text())
    (document[group] if group else document)[name] = value
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(DatadistillError, match=name):
        str(RunFolder(tmp_path).settings().config)


def test_a_pipe_in_the_place_of_a_log_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log.txt")
    with pytest.raises(DatadistillError, match=r"could not write .*log\.txt"):
        RunFolder(tmp_path).log("a line")


LINES = (
    "[" * 100_000,
    '{"step": 10, "held_out_accuracy": "high"}',
    '{"step": 1e999}',
    '{"step": 2, "held_out_accuracy": null}',
    '{"step": 3, "learning_rates": "ab"}',
    '{"step": 4, "learning_rates": [1, null]}',
    '{"step": true}',
)


def test_lines_of_metrics_that_mean_nothing_are_left_out(whole: Path, tmp_path: Path) -> None:
    good = (whole / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text("\n".join(LINES) + "\n" + good)
    found = RunFolder(tmp_path).metrics()
    assert found == RunFolder(whole).metrics()
    found[0]["learning_rates"] = [0.1, 0.2, 0.3]  # as many as no other line has
    save_curve(found, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").is_file()

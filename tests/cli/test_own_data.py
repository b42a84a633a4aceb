"""Every command takes data of one's own, and a run finds it again."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

import datadistill as dd
from datadistill.cli.main import main

sys.path.append(str(Path(__file__).parent.parent / "data"))

from own import digit_arrays, write_folder, write_npz

QUICK = ["--model", "mlp", "--iterations", "4", "--outer-eval-every", "2", "--batch", "32"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    write_folder(Path("my pets"), digit_arrays(200, 60))


def test_every_command_takes_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--dataset", "my pets", "--size", "6"]
    assert main(["distill", *own, *QUICK, "--out", "run"]) == 0
    assert "my-pets: 10 classes, 6x6 grey; 180 images to train on, 20 held out" in capsys.readouterr().err
    assert main(["evaluate", "run"]) == 2
    said = "run names the dataset my pets, which is a path: say --dataset 'my pets' to use it"
    assert said in capsys.readouterr().err
    again = own[:2]
    assert main(["evaluate", "run", *again, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dataset"] == "my pets"
    assert main(["compare", "run", *again, "--baselines", "random", "--nets", "2"]) == 0
    assert main(["audit", "run", *again, "--nets", "1", "--train-epochs", "1"]) in (0, 1)
    assert main(["baseline", *own, "--model", "mlp", "--steps", "1", "--epochs", "1", "--nets", "2"]) == 0
    assert Path("runs/my-pets-random-1").is_dir()
    assert main(["plan", *own, "--model", "mlp", "--json"]) == 0
    assert main(["check", *own, "--model", "mlp", "--directions", "1"]) == 0
    assert main(["pretrain", *own, "--model", "mlp", "--nets", "3", "--reserved", "1", "--epochs", "1"]) == 0
    assert Path("pools/my-pets-mlp.safetensors").is_file()
    assert "--dataset 'my pets' --size 6" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["distill", "baseline"])
def test_the_recorded_command_makes_the_same(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    flags = QUICK if command == "distill" else ["--model", "mlp", "--steps", "1", "--epochs", "1", "--nets", "2"]
    own = ["--dataset", "my pets", "--channels", "3", "--skip-unreadable"]
    assert main([command, *own, *flags, "--out", "first"]) == 0
    recipe = dd.load_distilled("first").provenance.recipe
    assert main([*shlex.split(recipe)[1:], "--out", "again"]) == 0
    assert torch.equal(dd.load_distilled("first").images, dd.load_distilled("again").images)


def test_a_run_goes_on_from_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ["--dataset", "my pets", "--size", "6"]
    assert main(["distill", *own, *QUICK, "--out", "run"]) == 0
    first = dd.load_distilled("run")
    here = Path("run").resolve()
    for checkpoint in sorted(Path("run/checkpoint").iterdir())[1:]:
        checkpoint.unlink()
    monkeypatch.chdir("..")
    assert main(["distill", "--resume", "--out", str(here)]) == 2
    assert main(["distill", "--resume", "--out", str(here), "--dataset", "work/my pets"]) == 0
    again = dd.load_distilled(here)
    assert torch.equal(first.images, again.images)
    assert again.provenance.dataset == "my pets"


def test_a_run_goes_on_with_data_that_was_moved_or_repacked() -> None:
    assert main(["distill", "--dataset", "my pets", *QUICK, "--out", "run"]) == 0
    Path("my pets").rename("moved")
    assert main(["distill", "--resume", "--dataset", "moved", "--out", "run"]) == 0
    packed = str(write_npz(Path("pets.npz"), digit_arrays(200, 60)))
    assert main(["distill", "--resume", "--dataset", packed, "--out", "run"]) == 0


def test_a_run_does_not_go_on_with_other_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--dataset", "my pets", *QUICK, "--out", "run"]) == 0
    next(Path("my pets/train/3").iterdir()).unlink()
    capsys.readouterr()
    words = ["distill", "--resume", "--out", "run", "--dataset", "my pets"]
    assert main(words) == 2
    assert "the images of my pets have changed since it was started" in capsys.readouterr().err
    Path("my pets").rename("gone")
    assert main([*words[:-1], "./my pets"]) == 2
    assert "there is no folder or file" in capsys.readouterr().err


def test_unequal_classes(capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--dataset", "my pets", "--ipc", "proportional:20"]
    assert main(["distill", *own, *QUICK]) == 0
    place = Path("runs/my-pets-dd-fixed-init-proportional-20")
    assert len(dd.load_distilled(place).labels) == 20
    assert main(["distill", "--resume", "--out", str(place), *own[:2]]) == 0
    ipc = ",".join(["1", "3"] * 5)
    assert main(["distill", *own[:2], "--ipc", ipc, *QUICK, "--out", "run"]) == 0
    assert torch.bincount(dd.load_distilled("run").labels).tolist() == [1, 3] * 5
    capsys.readouterr()
    assert main(["compare", "run", *own[:2], "--baselines", "random", "--nets", "2", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["distilled_images"] for result in results] == [20, 20]
    assert main(["distill", *own[:2], "--ipc", "1,2", *QUICK, "--out", "other"]) == 2
    assert "ipc has 2 numbers, but my-pets has 10 classes" in capsys.readouterr().err


def test_a_listed_name_is_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(Path("digits"), digit_arrays(100, 30))
    assert main(["plan", "--dataset", "digits", "--model", "mlp"]) == 0
    assert "digits: 10 classes" not in capsys.readouterr().err
    assert main(["plan", "--dataset", "./digits", "--model", "mlp"]) == 0
    assert "digits: 10 classes" in capsys.readouterr().err


WRONG = {
    "no such folder": (["--dataset", "./nowhere"], "no folder or file ./nowhere"),
    "no such file": (["--dataset", "nowhere.npz"], "no folder or file nowhere.npz"),
    "another kind of file": (["--dataset", "my pets/train/0/00000.png"], "neither a folder of images nor"),
    "a size of a listed dataset": (["--dataset", "digits", "--size", "16"], "--size is for data of your own"),
    "a size beyond reason": (["--dataset", "my pets", "--size", "99999"], "from 1 to 4096"),
    "two channels": (["--dataset", "my pets", "--channels", "2"], "must be 1 (grey) or 3 (colour)"),
    "a name that is none": (["--dataset", "x" * 5000], "unknown dataset"),
    "a path with a zero in it": (["--dataset", "./a\0b"], "no path"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_one_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, sentence = WRONG[name]
    assert main(["distill", *arguments, "--model", "mlp"]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_class_names_are_never_paths(tmp_path: Path) -> None:
    import numpy as np

    x, y, *_ = digit_arrays(100, 30)
    odd = np.array(["../x", "/tmp/x", "a\nb", "ü" * 300, "..", "~", "con", "a/b/c", "%s", "<script>"])
    np.savez("odd.npz", x=x, y=y, classes=odd)
    assert main(["distill", "--dataset", "odd.npz", *QUICK, "--out", "run"]) == 0
    assert main(["show", "run", "--out", "sheet.png"]) == 0
    assert sorted(os.listdir(tmp_path)) == ["work"]
    assert sorted(os.listdir()) == ["my pets", "odd.npz", "run", "sheet.png"]

"""A picture is written where nothing is: never over what a user has."""

import os
import sys
from pathlib import Path

import pytest

import datadistill as dd
from datadistill.cli.main import main


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: dd.RealData) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    dd.distill(digits, model="mlp", iterations=1, device="cpu").distilled.save("run/distilled.safetensors")
    return Path("run")


@pytest.mark.parametrize("out", ["run/distilled.safetensors", "notes.png", "link.png", ".", "..", "/", "run", "run/.."])
def test_nothing_is_overwritten(out: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "distilled.safetensors").read_bytes()
    Path("notes.png").write_text("mine")
    os.symlink("nowhere", "link.png")
    assert main(["show", "run", "--out", out]) == 2
    assert f"there is something at {out} already" in capsys.readouterr().err
    assert (run / "distilled.safetensors").read_bytes() == before
    assert Path("notes.png").read_text() == "mine"
    assert sorted(os.listdir()) == ["link.png", "notes.png", "run"]


def test_nothing_is_overwritten_beside_the_data(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "distilled.safetensors").rename("ten.safetensors")
    Path("ten.png").write_text("mine")
    assert main(["show", "ten.safetensors"]) == 2
    assert Path("ten.png").read_text() == "mine"
    Path("ten.safetensors").rename("ten.jpg")
    Path("ten.png").unlink()
    assert main(["show", "ten.jpg"]) == 0
    assert Path("ten.png").read_bytes().startswith(b"\x89PNG")
    Path("ten.jpg").rename("odd.png")
    assert main(["show", "odd.png"]) == 2


def test_the_picture_that_is_there_already_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "run"]) == 0
    assert main(["show", "run"]) == 0
    assert capsys.readouterr().out == "run/sheet.png\n" * 2


@pytest.mark.parametrize("out", [".", "/", ".."])
@pytest.mark.parametrize("flags", [[], ["--trajectories"]])
def test_networks_need_a_name(flags: list[str], out: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--dataset", "digits", "--model", "mlp", *flags, "--nets", "2", "--out", out]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("datadistill: ")


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_names_that_are_no_utf_8(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"r\xe9sultat")
    quick = ["--model", "mlp", "--iterations", "1", "--batch", "32", "--nets", "1"]
    assert main(["distill", "--dataset", "digits", *quick, "--out", name]) == 0
    assert b"r\xe9sultat" in Path(name, "README.md").read_bytes()
    assert main(["evaluate", name]) == 0
    assert main(["show", name]) == 0
    assert main(["distill", "--resume", "--out", name]) == 0

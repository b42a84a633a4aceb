"""`baseline` with several sets, and `compare`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import datadistill as dd
from datadistill.baselines import BASELINES
from datadistill.cli.main import main

SMALL = ["--dataset", "digits", "--model", "mlp", "--steps", "2", "--epochs", "2"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)


@pytest.fixture(autouse=True)
def _fewer_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datadistill.baselines.base._NETWORKS", 3)


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()[-1]


def test_several_sets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baseline", *SMALL, "--how", "Optimized", "--sets", "10", "--nets", "4", "--out", "best"]) == 0
    out = capsys.readouterr().out
    assert "2 sets of 20 images" in out
    assert "4 networks trained" in out
    assert " ± " in out
    first, second = dd.load_distilled("best"), dd.load_distilled("best/distilled-2.safetensors")
    assert not torch.equal(first.images, second.images)
    held_out = [data.provenance.scores[0]["accuracy"] for data in (first, second)]
    assert held_out[0] >= held_out[1]
    assert first.provenance.scores[-1]["nets"] == 2
    assert main([*first.provenance.recipe.split()[1:], "--nets", "4", "--out", "again"]) == 0
    assert torch.equal(first.images, dd.load_distilled("again").images)


def test_too_many_means_are_refused_before_anything_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baseline", *SMALL, "--how", "average", "--sets", "2"]) == 2
    assert "always the same" in sentence(capsys)
    assert not Path("runs").exists()


@pytest.fixture
def result(capsys: pytest.CaptureFixture[str]) -> str:
    arguments = ["--iterations", "10", "--batch", "64", "--networks", "1"]
    assert main(["distill", *SMALL, "--weights", "random-init", *arguments, "--out", "run"]) == 0
    capsys.readouterr()
    return "run"


def test_compare(result: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = ",".join(info.name for info in BASELINES if info.name != "optimized")
    assert main(["compare", result, "--baselines", names, "--nets", "3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"dataset", "protocol", "results", "chance", "versions"} <= document.keys()
    rows = {row["set"]: row for row in document["results"]}
    assert list(rows) == [result, *names.split(",")]
    assert {row["distilled_images"] for name, row in rows.items() if name != "average"} == {20}
    assert {row["nets"] for row in rows.values()} == {3}
    assert rows[result]["accuracy"] == _evaluated(result, capsys)
    assert len({row["accuracy"]["mean"] for row in rows.values()}) == len(rows), "each is another set"
    assert main(["compare", result, "--baselines", "average", "--nets", "2", "--protocol", "nearest"]) == 0
    out = capsys.readouterr().out
    assert "protocol nearest" in out
    assert "average" in out


def test_sets_are_chosen_by_held_out_images(result: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--nets", "2", "--split", "held_out"]
    assert main(["compare", result, "--baselines", "kmeans", *asked, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    held_out = len(dd.load("digits").held_out)
    assert [(row["split"], row["images"]) for row in rows] == [("held_out", held_out)] * 2
    for command in ("evaluate", "compare"):
        assert main([command, result, *asked]) == 0
        out = capsys.readouterr().out
        assert "held-out accuracy" in out
        assert "test accuracy" not in out


def _evaluated(path: str, capsys: pytest.CaptureFixture[str]) -> object:
    assert main(["evaluate", path, "--nets", "3", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["results"][0]["accuracy"]


def test_baselines_are_tuned_for_every_network(result: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--models", "mlp,ConvNetD1W4", "--baselines", "kmeans", "--nets", "2", "--json"]
    assert main(["compare", result, *arguments]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [(row["set"], row["model"]) for row in rows] == [
        *((result, model) for model in ("mlp", "convnetd1w4")),
        *(("kmeans", model) for model in ("mlp", "convnetd1w4")),
    ]


def test_a_fixed_start_is_shared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baseline", *SMALL, "--weights", "fixed-init", "--seed", "5", "--out", "fixed"]) == 0
    capsys.readouterr()
    assert main(["compare", "fixed", "--baselines", "random", "--json"]) == 0
    mine, baseline = json.loads(capsys.readouterr().out)["results"]
    assert mine["nets"] == baseline["nets"] == 1
    assert mine["before"] == baseline["before"], "both start from the weights in the file"
    assert main(["compare", "fixed", "--baselines", "random", "--weights", "random-init", "--nets", "2", "--json"]) == 0
    assert [row["nets"] for row in json.loads(capsys.readouterr().out)["results"]] == [2, 2]


def test_what_cannot_be_compared(result: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", result, "--baselines", "rendom"]) == 2
    assert "did you mean random" in sentence(capsys)
    data = dd.load_distilled(result)
    replace(data, provenance=replace(data.provenance, dataset="mnist")).save("other.safetensors")
    assert main(["compare", result, "other.safetensors"]) == 2
    assert "digits, mnist" in sentence(capsys)
    replace(data, batches=data.batches[:1].repeat(2, 1)).save("shared.safetensors")
    assert main(["compare", "shared.safetensors", "--baselines", "random"]) == 2
    assert "leave out --baselines" in sentence(capsys)
    assert main(["compare", "shared.safetensors", "--nets", "1"]) == 0

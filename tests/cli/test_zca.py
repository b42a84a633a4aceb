"""--zca: data that was made with it is judged with it, without a flag."""

import json
from pathlib import Path

import pytest

import datadistill as dd
from datadistill.cli.main import main

SMALL = ["--dataset", "digits", "--model", "mlp"]
RUN = [*SMALL, "--weights", "random-init", "--steps", "1", "--epochs", "1", "--nets", "2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    monkeypatch.setattr("datadistill.baselines.base._NETWORKS", 2)


def distil(*more: str) -> None:
    assert main(["distill", *RUN, "--batch", "64", "--networks", "1", "--iterations", "2", *more]) == 0


def test_from_distilling_to_judging(capsys: pytest.CaptureFixture[str]) -> None:
    distil("--zca", "--out", "white")
    assert json.loads(Path("white/config.json").read_text())["zca"] is True
    data = dd.load_distilled("white")
    assert data.provenance.normalization.zca is not None
    assert "--zca" in data.provenance.recipe.split()
    assert "whitened (ZCA)" in Path("white/README.md").read_text()
    recorded = data.provenance.recipe.split()
    assert main([*recorded[1:], "--out", "again"]) == 0
    assert dd.load_distilled("again").images.equal(data.images)
    capsys.readouterr()
    found = dd.evaluate(data, dd.load("digits", zca=True), nets=2)
    assert main(["evaluate", "white", "--nets", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["accuracy"]["mean"] == found.accuracy.mean
    assert main(["compare", "white", "--nets", "1", "--baselines", "random"]) == 0
    assert main(["distill", "--resume", "--out", "white", "--nets", "2"]) == 0


def test_sets_of_both_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    distil("--zca", "--out", "white")
    distil("--out", "plain")
    capsys.readouterr()
    assert main(["evaluate", "white", "plain", "--nets", "1"]) == 0
    for words, sentence in (
        (["compare", "white", "plain"], "compare each kind by itself"),
        (["evaluate", "plain", "--zca"], "leave out --zca"),
        (["distill", "--resume", "--zca", "--out", "plain"], "zca is False there and True here"),
        (["export", "white", "--to", "png"], "export them to npz"),
    ):
        capsys.readouterr()
        assert main(words) == 2
        assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_baselines_and_pools_are_made_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--zca", "--protocol", "dc", "--epochs", "2", "--nets", "1"]
    assert main(["baseline", *SMALL, *words, "--out", "chosen"]) == 0
    data = dd.load_distilled("chosen")
    assert data.provenance.normalization.zca is not None
    assert "--zca" in data.provenance.recipe.split()
    words = ["--nets", "2", "--reserved", "1", "--epochs", "1", "--zca"]
    assert main(["pretrain", *SMALL, *words]) == 0
    pool = "pools/digits-zca-mlp.safetensors"
    assert dd.load_pool(pool).facts.zca
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("distil ")]
    assert "--dataset digits --zca" in line
    assert (
        main(["distill", *RUN, "--weights", "random-pretrained", "--pool", pool, "--iterations", "1", "--nets", "1"])
        == 2
    )
    assert "add --zca" in capsys.readouterr().err

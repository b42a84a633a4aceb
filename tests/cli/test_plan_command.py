"""plan: what it prints, and that it does not begin a run."""

import json
from pathlib import Path

import pytest

from datadistill.cli.main import main


def test_a_table_and_the_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--dataset", "digits", "--model", "mlp", "--epochs", "40"]) == 0
    printed = capsys.readouterr().out
    assert "full (chosen)" in printed
    assert all(f"\n{word}" in printed for word in ("memory", "time", "disk", "engine"))
    assert not list(tmp_path.iterdir())


def test_json_follows_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--dataset", "digits", "--model", "mlp", "--epochs", "400", "--json", "--memory", "0.01"]
    assert main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["chosen"]["engine"]["storage"] == "checkpoint"
    peaks = {entry["engine"]["storage"]: entry["peak_bytes"] for entry in document["all"]}
    assert peaks["full"] > peaks["recompute"] > peaks["checkpoint"]
    assert document["seconds"] == pytest.approx(document["chosen"]["seconds"] * document["iterations"])


def test_a_narrower_network_to_match_on_takes_less(capsys: pytest.CaptureFixture[str]) -> None:
    peaks = []
    for flags in ([], ["--matched-on", "convnetD1W16"]):
        words = ["plan", "--dataset", "digits", "--method", "dc", "--model", "convnetD1W64", "--ipc", "2", *flags]
        assert main([*words, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["model"] == "convnetd1w64"
        peaks.append(document["chosen"]["peak_bytes"])
    assert peaks[1] < peaks[0] / 2


def test_the_disk_it_predicts_is_the_disk_a_run_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--dataset", "digits", "--model", "mlp"]
    assert main(["plan", *flags, "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)["disk_bytes"]
    assert main(["distill", *flags, "--iterations", "30", "--out", str(tmp_path / "run")]) == 0
    files = [path for path in (tmp_path / "run").rglob("*") if path.suffix == ".safetensors"]
    taken = sum(path.stat().st_size for path in files)
    assert 0.7 < predicted / taken < 1.4


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--hvp", "difference", "--surrogate-width", "0"], "hvp difference is for smooth networks"),
        (["--storage", "full", "--hvp", "forward"], "storage full keeps the graphs of hvp reverse"),
        (["--memory", "nan"], "memory is nan"),
        (["--execution", "graph"], "needs a CUDA device"),
        (["--method", "random_teacher"], "method random_teacher optimises nothing"),
    ],
)
def test_a_wrong_request_is_one_sentence(flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--dataset", "digits", "--model", "mlp", *flags]) == 2
    printed = capsys.readouterr().err
    assert reason in printed
    assert printed.count("\n") == 1


def test_it_says_where_distill_would_choose_the_method(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--dataset", "digits", "--model", "mlp", "--ipc", "1", "--json"]
    assert main(words) == 0
    assert "distill would choose methods by itself; this is of dd" in capsys.readouterr().err
    assert main([*words, "--method", "dd"]) == 0
    assert "by itself" not in capsys.readouterr().err

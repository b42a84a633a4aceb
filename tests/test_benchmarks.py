"""Benchmarks are commands; here only that they start and print what they promise."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

import datadistill as dd
from datadistill.methods import METHODS

FACTS = {"isa", "threads", "processor", "kernels"}


def rows_of(*command: str) -> list[dict[str, Any]]:
    """What a benchmark prints on one core, and nothing else."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_flags_are_refused_before_anything_is_measured() -> None:
    for flags in (["--threads", "-1"], ["--threads", "two"], ["--isa", "mmx"]):
        command = [sys.executable, "benchmarks/judging.py", *flags]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert flags[0] in done.stderr


@pytest.mark.slow
def test_ablation_prints_json(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/ablation.py", "--iterations", "3", "--only", "the recipe,no clipping"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["change"] for line in lines] == ["the recipe", "no clipping"]
    assert all(0 < line["held_out_best"] < 1 for line in lines)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory of a process is read from /proc")
def test_engine_prints_json_and_agrees_with_the_reference() -> None:
    (row,) = rows_of("benchmarks/engine.py", "--case", "LeNet, 10 images", "--rounds", "1")
    assert row.keys() >= FACTS
    assert row["threads"] == 1
    assert max(row["error"], row["own_error"]) < 1e-4
    assert max(row["error64"], row["own_error64"]) < 1e-8
    assert row["memory_ratio"] < 1
    assert min(row["time_ratio"], row["own_ratio"], row["limit_ratio"]) > 0
    assert row["ms"].keys() == {"reference", "ours", "own", "limit"}


@pytest.mark.slow
def test_methods_print_json_and_agree_with_their_references() -> None:
    small = ["--dataset", "digits", "--model", "ConvNetD1W16", "--ipc", "1", "--batch", "4", "--rounds", "1"]
    rows = rows_of("benchmarks/methods.py", *small, "--method", "dm,mtt", "--threads", "1,2")
    assert [(row["method"], row["threads"]) for row in rows] == [("dm", 1), ("dm", 2), ("mtt", 1), ("mtt", 2)]
    for row in rows:
        assert row.keys() >= FACTS
        assert max(row["error"], row["own_error"]) < 1e-2
        assert min(row["time_ratio"], row["own_ratio"]) > 0
    assert rows[-1]["memory_ratio"] < 1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="neighbours are stopped and go on by signals")
def test_neighbours_print_json() -> None:
    small = ["--case", "LeNet", "--rounds", "1", "--seconds", "0"]
    (row,) = rows_of("benchmarks/neighbours.py", *small, "--env", "OMP_WAIT_POLICY=passive")
    assert row.keys() >= FACTS
    assert row["threads"] == 1
    assert row["environment"] == {"OMP_WAIT_POLICY": "passive"}
    assert row["steps"].keys() == row["ms"].keys() == {"alone", "one", "two", "torch"}
    assert row["ratio"].keys() == row["mean_ratio"].keys() == {"one", "two", "torch"}
    assert min(row["steps"].values()) > 0


@pytest.mark.slow
def test_products_prints_json() -> None:
    command = [sys.executable, "benchmarks/products.py", "--case", "LeNet, 10 images"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert line["torch"]["reverse"] > line["torch"]["gradient"] > 0


@pytest.mark.slow
def test_half_precision_prints_json(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/half_precision.py", "--epochs", "6", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if "way" in line]
    assert [line["epoch"] for line in lines][:2] == [0, 4]
    assert all(0 < line["change_of_gradient"] < 0.1 for line in lines)


@pytest.mark.slow
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="needs AVX2")
def test_judging_prints_json_and_agrees_with_the_reference() -> None:
    small = ["--case", "10 images", "--epochs", "1", "--rounds", "1", "--nets", "4", "--threads", "2"]
    (row,) = rows_of("benchmarks/judging.py", *small, "--isa", "avx2")
    assert row.keys() >= FACTS
    assert row["isa"] == "AVX2"
    assert row["threads"] == 2
    assert max(row["error"], row["own_error"]) < 1e-3
    assert min(row["seconds"], row["seconds_own"], row["seconds_plain"]) > 0
    assert min(row["time_ratio"], row["own_ratio"], row["limit_ratio"]) > 0


def test_every_method_is_killed() -> None:
    text = (ROOT / "benchmarks" / "kills.py").read_text()
    assert [name for name in METHODS.names() if f"distill --method {name} " not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("number", ["KILL", "TERM"])
def test_whatever_is_killed_ends_with_the_same_bits(number: str) -> None:
    (row,) = rows_of("benchmarks/kills.py", "--signal", number, "--seeds", "1000:1012")
    assert (row["signal"], row["tried"], row["same_bits"], row["failures"]) == (number, 12, 12, [])
    assert row["kills"] >= 6


@pytest.mark.slow
@pytest.mark.parametrize("number", ["KILL", "TERM"])
def test_whatever_rank_is_killed_all_end_and_any_number_goes_on(number: str) -> None:
    cases = "dd,dc,mtt,pool,evaluate,reproduce"
    (row,) = rows_of(
        "benchmarks/kills.py", "--signal", number, "--ranks", "1,2,3", "--seeds", "2000:2006", "--case", cases
    )
    assert (row["signal"], row["tried"], row["same_bits"], row["failures"]) == (number, 6, 6, [])
    assert row["kills"] >= 3


@pytest.mark.slow
def test_ranks_prints_json() -> None:
    short = ["--rounds", "1", "--steps", "3", "--ranks", "1,2"]
    first, model = rows_of("benchmarks/ranks.py", *short, "--only", "distill,model")
    assert first.keys() >= FACTS
    assert first["speed"].keys() == {"alone", "threads", "ranks"}
    assert min(first["seconds"].values()) > 0
    assert all(row["seconds"] > 0 and row["predicted"] > 0 for row in model["ranks"].values())


@pytest.mark.slow
def test_kills_find_what_differs(tmp_path: Path) -> None:
    command = ["benchmarks/kills.py", "--seeds", "0:1", "--case", "dd", "--work", str(tmp_path)]
    rows_of(*command)
    file = tmp_path / "whole" / "dd" / "run" / "distilled.safetensors"
    data = dd.load_distilled(file)
    replace(data, images=data.images + 1).save(file)
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (failure,) = json.loads(done.stdout)["failures"]
    assert (failure["seed"], failure["case"]) == (0, "dd")
    assert list(failure["differs"]) == ["run/distilled.safetensors/images"]


@pytest.mark.slow
def test_same_bits_finds_what_differs_and_nothing_else(tmp_path: Path) -> None:
    package = tmp_path / "datadistill"
    package.mkdir()
    lines = (
        "import sys",
        f"sys.path.insert(0, {str(ROOT)!r})",
        "del sys.modules['datadistill']",
        "from datadistill.cli.main import main",
        "sys.exit(main([*sys.argv[1:], '--seed', '1']))",
    )
    (package / "__main__.py").write_text("\n".join(lines))
    (package / "__init__.py").touch()
    (row,) = rows_of("benchmarks/same_bits.py", ".", ".", "--case", "kinks")
    assert (row["case"], row["same"], row["differs"]) == ("kinks", True, {})
    assert min(row["seconds"].values()) > 0
    command = [sys.executable, "benchmarks/same_bits.py", ".", str(tmp_path), "--case", "kinks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    row = json.loads(done.stdout)
    assert not row["same"]
    assert row["differs"]["run/distilled.safetensors/images"] > 0
    (allowed,) = rows_of(*command[1:], "--allow", "kinks/run/*")
    assert allowed["differs"] == row["differs"]


@pytest.mark.slow
def test_accuracy_prints_json_draws_and_goes_on(tmp_path: Path) -> None:
    small = ["--dataset", "digits", "--model", "mlp", "--methods", "random,default", "--minutes", "0.02", "--nets", "2"]
    command = [sys.executable, "benchmarks/accuracy.py", *small, "--out", str(tmp_path)]
    first, again = (subprocess.run(command, cwd=ROOT, capture_output=True, text=True) for _ in range(2))
    assert first.stdout == again.stdout
    rows = [json.loads(line) for line in first.stdout.splitlines()]
    assert [row["method"] for row in rows] == ["random", "default"]
    assert all(0 < row[protocol]["mean"] < 1 for row in rows for protocol in ("own", "dc"))
    assert rows[1]["steps"] > 0
    beaten = [line for line in first.stderr.splitlines() if line.startswith("random has")]
    assert first.returncode == again.returncode == bool(beaten)
    assert (tmp_path / "accuracy.png").exists()

"""Benchmarks are commands; here only that they start and print what they promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


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
    command = [sys.executable, "benchmarks/engine.py", "--case", "LeNet, 10 images", "--rounds", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    (line,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert line["error"] < 1e-4
    assert line["error64"] < 1e-8
    assert line["memory_ratio"] < 1
    assert not done.stderr


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
def test_judging_prints_json_and_agrees_with_the_reference() -> None:
    command = [sys.executable, "benchmarks/judging.py", "--case", "10 images", "--epochs", "1", "--rounds", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    (line,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert line["error"] < 1e-3
    assert line["seconds"] > 0
    assert not done.stderr

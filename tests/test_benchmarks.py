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

"""Standard output whose encoding lacks characters of class names and figures."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from datadistill.cli.main import main

CLASSES = ("猫", "犬")
DATASET = "signs.npz"


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Distilled data of two classes whose names few encodings have."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    pixels = np.random.default_rng(0).integers(0, 150, (80, 8, 8)).astype(np.uint8)
    labels = np.arange(80) % 2
    pixels[labels == 1, :, :3] = 250
    np.savez(DATASET, x=pixels, y=labels, classes=np.array(CLASSES))
    steps = ["--weights", "random-init", "--steps", "1", "--epochs", "2", "--iterations", "20"]
    assert main(["distill", "--dataset", DATASET, "--model", "mlp", *steps, "--nets", "1", "--out", "run"]) == 0
    return "run"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_tables_are_printed_in_any_encoding(
    encoding: str, run_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = {}
    for command in (
        ["list", "recipes"],
        ["evaluate", run_folder, "--nets", "2", "--dataset", DATASET],
        ["audit", run_folder, "--nets", "2", "--train-epochs", "1", "--dataset", DATASET],
        ["compare", run_folder, "--nets", "2", "--baselines", "random", "--dataset", DATASET],
    ):
        out = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding))
        assert main(command) in (0, 1)  # the audit may suspect a class
        sys.stdout.flush()
        printed[command[0]] = out.getvalue().decode(encoding)
        assert capsys.readouterr().err.count("Traceback") == 0
    names = CLASSES if encoding == "utf-8" else (r"\u732b", r"\u72ac")
    assert all(name in printed["audit"] for name in names)
    assert (r"\xb1" if encoding == "ascii" else "±") in printed["evaluate"]
    widths = {len(line) for line in printed["evaluate"].splitlines() if line.startswith(("|", "+"))}
    assert len(widths) == (0 if encoding == "utf-8" else 1)

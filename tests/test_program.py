"""The program `datadistill` as a process: the signals that it is ended by."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import datadistill as dd

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")

MLP = ("--dataset", "digits", "--model", "mlp")
LONG = ("distill", *MLP, "--iterations", "2000", "--batch", "64", "--outer-eval-every", "20", "--out", "run")


def started(*words: str, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "datadistill", *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str], number: int, when: Callable[[], bool]) -> tuple[int, list[str]]:
    """The exit code of a program that is sent a signal, and the lines that it leaves."""
    deadline = time.monotonic() + 60
    while not when():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == ""
    return process.returncode, [line for line in err.splitlines() if "fast operations" not in line]


def is_importing(process: subprocess.Popen[str]) -> bool:
    """Whether PyTorch is being loaded."""
    maps = Path(f"/proc/{process.pid}/maps")
    return "libtorch" in maps.read_text() if maps.exists() else False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what a process has loaded is read from /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_during_the_imports_is_one_line(number: int, tmp_path: Path) -> None:
    process = started(*LONG, folder=tmp_path)
    assert ended(process, number, lambda: is_importing(process)) == (128 + number, ["datadistill: interrupted"])
    assert not list(tmp_path.iterdir())


def test_a_machine_that_is_taken_away_amid_a_run(tmp_path: Path) -> None:
    process = started(*LONG, folder=tmp_path)
    code, lines = ended(process, signal.SIGTERM, (tmp_path / "run" / "distilled.safetensors").exists)
    assert code == 128 + signal.SIGTERM
    assert lines[-1].endswith("and saved in run; go on with: datadistill distill --resume --out run")
    latest = max((tmp_path / "run" / "checkpoint").iterdir())
    assert lines[-1].startswith(f"datadistill: interrupted at step {int(latest.stem.partition('-')[2])} ")


def test_a_lost_terminal_ends_other_commands_with_a_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    real, method = dd.load("digits"), dd.methods.DD(images="mean", batch=64)
    dd.distill(real, method, model="mlp", iterations=1).distilled.save(tmp_path / "run.safetensors")
    assert torch.get_num_threads() == 1
    words = ("evaluate", "run.safetensors", "--protocol", "dc", "--epochs", "100000", "--nets", "1")
    process = started(*words, folder=tmp_path)
    began = time.monotonic()
    code, lines = ended(process, signal.SIGHUP, lambda: time.monotonic() > began + 6)
    assert (code, lines[-1]) == (128 + signal.SIGHUP, "datadistill: interrupted")


def test_what_nohup_ignores_is_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = started("list", "models", folder=tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    for _ in range(20):
        time.sleep(0.1)
        process.send_signal(signal.SIGHUP)
    assert "lenet" in process.communicate()[0]
    assert process.returncode == 0

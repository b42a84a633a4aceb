"""Machines that are full, read-only, without a home, a clock that goes forward, or enough memory."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

import datadistill as dd
from datadistill.cli.main import main

MLP = ["--dataset", "digits", "--model", "mlp"]
DISTILL = ["distill", *MLP, "--iterations", "8", "--outer-eval-every", "4", "--batch", "64", "--nets", "1"]
POOL = ["pretrain", *MLP, "--nets", "3", "--reserved", "1", "--epochs", "1"]
EXPERTS = ["pretrain", "--trajectories", *MLP, "--nets", "2", "--epochs", "2", "--batch", "64"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of standard error, without a traceback before it."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("datadistill: ")
    return last


def tensors(path: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    files = [Path(path)] if Path(path).is_file() else sorted(Path(path).rglob("*.safetensors"))
    return {f"{file.relative_to(path)}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    "words",
    [DISTILL, POOL, EXPERTS],
    ids=["distill", "pool", "experts"],
)
def test_a_disk_that_is_full_at_any_write(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence, and with room again it goes on to the same bits."""
    assert main([*words, "--out", "whole"]) == 0
    for number in range(20):
        left = iter(range(number))

        def sync(handle: int, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", sync)
            code = main([*words, "--resume", "--out", "cut"])
        if code == 0:
            break
        assert code == 1
        assert "No space left on device" in sentence(capsys)
        assert not list(Path().rglob("*.part"))
    assert 2 <= number < 20
    whole, cut = tensors("whole"), tensors("cut")
    assert whole.keys() == cut.keys()
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []


@pytest.mark.parametrize("words", [DISTILL, POOL, EXPERTS], ids=["distill", "pool", "experts"])
def test_a_read_only_disk(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(given[0]))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    assert main([*words, "--out", "a/b"]) == 1
    assert "Read-only file system" in sentence(capsys)


def test_a_clock_that_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*DISTILL, "--out", "whole"]) == 0
    now = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    monkeypatch.setattr(time, "time_ns", lambda: next(now) * 10**9)
    assert main([*DISTILL, "--out", "run"]) == 0
    assert torch.equal(dd.load_distilled("whole").images, dd.load_distilled("run").images)
    assert dd.load_distilled("run").provenance.cost["seconds"] > 0


def program(
    *words: str, before: str = "", preexec: Callable[[], None] | None = None, **variables: str | None
) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, after some Python."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables
    kept = {name: value for name, value in environment.items() if value is not None}
    code = f"{before}\nfrom datadistill.__main__ import run_and_exit; run_and_exit()"
    return subprocess.run(
        [sys.executable, "-c", code, *words], env=kept, capture_output=True, text=True, preexec_fn=preexec
    )


HOMELESS = "import pwd\ndef getpwuid(user): raise KeyError(user)\npwd.getpwuid = getpwuid"
NO_PLACE = "import tempfile\ntempfile._candidate_tempdir_list = lambda: []"


@pytest.mark.parametrize(
    ("before", "variables"),
    [
        (HOMELESS, {"HOME": None, "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None, "MPLCONFIGDIR": None}),
        ("", {"TMPDIR": "/nowhere"}),
        ("", {"XDG_CACHE_HOME": "/dev/null/cache"}),
    ],
    ids=["no home", "no folder at TMPDIR", "no cache"],
)
def test_what_is_missing_is_done_without(before: str, variables: dict[str, str | None]) -> None:
    done = program(*DISTILL, "--out", "run", before=before, **variables)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert Path("run/README.md").exists()
    assert sum("operations: " in line for line in done.stderr.splitlines()) <= 1


def test_no_place_for_temporary_files_at_all() -> None:
    done = program("list", "models", before=NO_PLACE)
    assert "Traceback" not in done.stderr
    assert done.returncode == (1 if done.stderr else 0)


@pytest.mark.parametrize("words", [["distill", "--help"], ["list", "models"]])
def test_standard_output_that_is_closed_before_its_end(words: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "datadistill", *words]
        done = subprocess.run(command, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
    assert done.stderr == "datadistill: standard output was closed before all was printed; nothing else is lost\n"
    assert done.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full device is Linux's")
def test_standard_output_that_is_full() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "datadistill", "list", "models"]
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.stderr == "datadistill: could not go on: No space left on device\n"
    assert done.returncode == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a limit of address space is Linux's")
def test_a_limit_of_memory_that_is_too_low_for_the_program() -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))

    done = program("list", "models", preexec=limit)
    assert done.returncode == 1
    assert (
        done.stderr
        == "datadistill: a limit, such as that of ulimit -v, leaves too little memory to load PyTorch: raise it\n"
    )


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError("std::bad_alloc")],
    ids=["Python's", "PyTorch's", "C++'s"],
)
def test_memory_that_runs_out_amid_a_run_loses_nothing(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from datadistill.distillation import validation

    looks = []
    held_out = validation.held_out

    def running_out(*given: Any) -> Any:
        looks.append(None)
        if len(looks) == 2:
            raise error
        return held_out(*given)

    assert main([*DISTILL, "--out", "whole"]) == 0
    with monkeypatch.context() as patched:
        patched.setattr("datadistill.distillation.loop.held_out", running_out)
        assert main([*DISTILL, "--out", "run"]) == 1
    assert "not enough memory" in sentence(capsys)
    assert main([*DISTILL, "--resume", "--out", "run"]) == 0
    assert torch.equal(dd.load_distilled("whole").images, dd.load_distilled("run").images)

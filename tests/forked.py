"""Ranks for tests: forks of the process that runs them, which have loaded everything already."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from datadistill.utils import ranks

DEADLINE = 60.0


def place(rank: int, count: int, folder: Path) -> dict[str, str]:
    """The environment of a rank of a job on this machine."""
    here = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
    return {name: str(value) for name, value in here.items()} | {"DATADISTILL_MEETING": str(folder / "meeting")}


def start(rank: int, count: int, work: Callable[[], Any], folder: Path) -> int:
    """A rank in a process of its own; gives its number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        for number in (1, 2):
            os.dup2(os.open(folder / f"said-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        # In the place of those that pytest catches words with.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, encoding="utf-8") for number in (1, 2))
        os.environ.update(place(rank, count, folder))
        torch.set_num_threads(1)
        torch.save(work(), folder / f"result-{rank}.pt")
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def codes_of(processes: list[int]) -> list[int]:
    """Exit codes, minus the signal where that ended a process; those that do not end in time are killed."""
    codes, until = dict[int, int](), time.monotonic() + DEADLINE
    while len(codes) < len(processes):
        for process in processes:
            if process not in codes and (status := os.waitpid(process, os.WNOHANG))[0]:
                codes[process] = os.waitstatus_to_exitcode(status[1])
            elif process not in codes and time.monotonic() > until:
                os.kill(process, 9)
        time.sleep(0.005)
    return [codes[process] for process in processes]


def in_ranks(count: int, work: Callable[[], Any], folder: Path) -> list[Any]:
    """What a function gives each of so many ranks."""

    def joined() -> Any:
        with ranks.joined():
            return work()

    folder.mkdir(parents=True, exist_ok=True)
    codes = codes_of([start(rank, count, joined, folder) for rank in range(count)])
    errors = [path.read_text() for path in sorted(folder.glob("error-*"))]
    assert codes == [0] * count, (codes, *errors, *(p.read_text() for p in sorted(folder.glob("said-*"))))
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(count)]

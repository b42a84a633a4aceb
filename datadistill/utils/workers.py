"""`--workers N`: the ranks of a job on one machine, which its first process starts before PyTorch is loaded."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

FLAG = "--workers"
_SECONDS_TO_END = 10.0


def workers_in(words: Sequence[str]) -> int:
    """How many processes a command line asks for; 1 where it says nothing that is a number."""
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name == FLAG:
            value = value or "".join(words[place + 1 : place + 2])
            return int(value) if value.isascii() and value.isdigit() else 1
    return 1


@contextmanager
def started(words: Sequence[str]) -> Iterator[None]:
    """Within it this process is rank 0 of as many as a command line asks for, unless it has a place already."""
    count = workers_in(words)
    if count < 2 or "RANK" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="datadistill-") as folder:
        shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "DATADISTILL_MEETING": Path(folder, "meeting")}
        os.environ.update({name: str(value) for name, value in shared.items()})
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // count)))
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nobody else has to reach them
        others = [subprocess.Popen(_again(), env=_place(rank), stdin=subprocess.DEVNULL) for rank in range(1, count)]
        os.environ.update(_place(0))
        try:
            yield
        finally:
            for other in others:
                with suppress(subprocess.TimeoutExpired):
                    other.wait(_SECONDS_TO_END)
                other.kill()
                other.wait()


def _again() -> list[str]:
    """The command that started this process."""
    return [sys.executable, *sys.orig_argv[1:]]


def _place(rank: int) -> dict[str, str]:
    return {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1

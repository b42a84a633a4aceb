"""What the benchmarks share: two flags, the facts in every row, and sides that take turns.

A benchmark imports this before PyTorch, which asks only once what instructions the processor has: by then the package
must have seen `DATADISTILL_ISA`.

    --isa avx2       use AVX2 where there is more: in PyTorch, its libraries, and our own operations, on every side
    --threads 1,2    measure each case with each of these numbers of threads, on every side (by default with as many
                     as PyTorch takes by itself)

Every row says where it was measured: `isa`, the instructions that PyTorch uses; `threads`; `processor`, by name; and
`kernels`, our own operations that were used. Where there are none, ours and the engine on PyTorch's own are one.
"""

import datadistill  # noqa: F401

# isort: split
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from datadistill.engine import kernels


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--isa", choices=("avx2",), help="no other instructions than these, on every side")
    parser.add_argument("--threads", type=_counts, default=[0], help="numbers of threads, separated by commas")


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if min(counts) < 0:
        raise argparse.ArgumentTypeError(f"there cannot be {min(counts)} threads")
    return counts


def use_isa(isa: str | None) -> None:
    """Start this command again with those instructions alone, unless it has been; children inherit the choice."""
    if isa is None:
        return
    if os.environ.get("DATADISTILL_ISA") != isa:
        os.environ["DATADISTILL_ISA"] = isa
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if (used := torch.backends.cpu.get_cpu_capability()).lower() != isa:
        raise SystemExit(f"asked for {isa}, but PyTorch uses {used}")


SPINNING = {"GOMP_SPINCOUNT": "300000"}
"""How threads wait in a program that has not imported `datadistill`: what GNU's library does by itself."""


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables that a process which is started here inherits."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def use_threads(threads: int) -> None:
    """In this process, from now on; 0: as it is."""
    if threads > 0:
        torch.set_num_threads(threads)


def facts() -> dict[str, Any]:
    """Where a row was measured; asked for in the process that measures, once our operations are built."""
    return {
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "kernels": list(kernels.chosen("auto", kernels.measured())),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def turns(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Each name once in every round; another one begins each time."""
    for turn in range(rounds):
        first = turn % len(names)
        yield from (*names[first:], *names[:first])


def ratio(times: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """The median over rounds of the ratios within a round: what slows a whole round down is not in it."""
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


class Side:
    """A process that answers every line with a line of JSON."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start it.

        Args:
            command: a benchmark's file and its arguments.
            environment: variables for this process alone, besides those that are there.
        """
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def ask(self, order: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(order, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("a benchmark process died")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

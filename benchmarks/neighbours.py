"""What a busy neighbour costs: an outer step alone, and beside processes that keep cores busy.

    python benchmarks/neighbours.py [--case NAME;...] [--rounds N] [--seconds X] [--env NAME=VALUE ...] [--isa avx2]
                                    [--threads N,...]

An outer step runs again and again in a process of its own, as the command line runs it: it keeps freed memory, has our
own operations built, and as many threads as PyTorch takes. LeNet sees 1,024 real images in a step, the ConvNet 64. Its
neighbours are there from the start, stopped, and go on for a block of some seconds (`--seconds`) at a time: none
(`alone`), `one` or `two` processes of one thread that only count, or one process (`torch`) that multiplies matrices on
two threads. In every round (`--rounds`) each has one block.

`--env NAME=VALUE`, as often as you like, is for nothing but the process that is measured: so a setting such as
`OMP_WAIT_POLICY=passive` or `GOMP_SPINCOUNT=0` can be compared with none.

Prints one JSON line for each case and number of threads:

    case            what is measured
    isa, threads, processor, kernels
                    where (see `common.py`), as the process that is measured sees it
    environment     what `--env` gave it
    ms              by neighbours: milliseconds of a step, the median over rounds of the medians in a block
    ratio           by neighbours: `ms` over that alone, the median over rounds of the ratios within a round
    mean_ratio      the same for the means in a block: by how much longer a run of many steps takes
    steps           by neighbours: how many steps were timed
"""

import argparse
import itertools
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import common
import engine
import torch

from datadistill.engine import kernels
from datadistill.models.convnet import ConvNet
from datadistill.utils.runtime import keep_freed_memory

CASES = (
    engine.SHORT,
    engine.Case("ConvNetD3W128, 10 images, 1x3, 1 network", lambda: ConvNet(10, 1, 28), 1, 28, 10, 1, 3, 1, 64),
)

# Linux ends a neighbour with the process that started it, even while it is stopped.
_FIRST = """
import ctypes, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
"""
_COUNT = f"{_FIRST}print(flush=True)\nwhile True: pass"
_MULTIPLY = f"""{_FIRST}
import torch
torch.set_num_threads(2)
square = torch.randn(512, 512)
print(flush=True)
while True: square @ square
"""
NEIGHBOURS: dict[str, tuple[int, ...]] = {"alone": (), "one": (0,), "two": (0, 1), "torch": (2,)}
"""Which of three processes are busy: two that count and one that multiplies."""


@contextmanager
def neighbour(program: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is ready to be busy, and stopped."""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def busy(processes: list[subprocess.Popen[str]]) -> Iterator[None]:
    for process in processes:
        process.send_signal(signal.SIGCONT)
    try:
        time.sleep(0.05 if processes else 0)
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGSTOP)


def serve(name: str) -> None:
    """Take steps for as many seconds as standard input says, at least one, and answer with what each took."""
    case = next(case for case in CASES if case.name == name)
    step = engine.Ours(engine.Work.of(case, torch.device("cpu"), torch.float32))
    for line in sys.stdin:
        if line.strip() == "facts":
            print(json.dumps(common.facts()), flush=True)
            continue
        step()  # what the block before has left behind
        ends = [time.perf_counter()]
        while len(ends) == 1 or ends[-1] - ends[0] < float(line):
            step()
            ends.append(time.perf_counter())
        print(json.dumps([end - began for began, end in itertools.pairwise(ends)]), flush=True)


def blocks(side: common.Side, rounds: int, seconds: float) -> dict[str, list[list[float]]]:
    """What each step took, by neighbours and round."""
    found: dict[str, list[list[float]]] = {name: [] for name in NEIGHBOURS}
    with ExitStack() as stack:
        processes = [stack.enter_context(neighbour(program)) for program in (_COUNT, _COUNT, _MULTIPLY)]
        side.ask("0")
        for name in common.turns(list(NEIGHBOURS), rounds):
            with busy([processes[place] for place in NEIGHBOURS[name]]):
                found[name].append(side.ask(str(seconds)))
    return found


def measure(name: str, rounds: int, seconds: float, threads: int, environment: dict[str, str]) -> dict[str, Any]:
    side = common.Side([__file__, "--serve", name, "--threads", str(threads)], environment)
    facts = side.ask("facts")
    times = blocks(side, rounds, seconds)
    side.close()
    middle = {who: [statistics.median(block) for block in found] for who, found in times.items()}
    mean = {who: [statistics.fmean(block) for block in found] for who, found in times.items()}
    others = [who for who in NEIGHBOURS if who != "alone"]
    return {
        "case": name,
        **facts,
        "environment": environment,
        "ms": {who: round(1e3 * statistics.median(found), 2) for who, found in middle.items()},
        "ratio": {who: round(common.ratio(middle, who, "alone"), 3) for who in others},
        "mean_ratio": {who: round(common.ratio(mean, who, "alone"), 3) for who in others},
        "steps": {who: sum(map(len, found)) for who, found in times.items()},
    }


def variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE")
    return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="", help="only cases whose names contain one of these, separated by ;")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--env", type=variable, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    common.add_flags(parser)
    given = parser.parse_args()
    if given.serve:
        keep_freed_memory()
        kernels.build()
        common.use_threads(given.threads[0])
        serve(given.serve)
        return
    common.use_isa(given.isa)
    chosen = [case.name for case in CASES if any(part in case.name for part in given.case.split(";"))]
    for name, threads in itertools.product(chosen, given.threads):
        print(json.dumps(measure(name, given.rounds, given.seconds, threads, dict(given.env))), flush=True)


if __name__ == "__main__":
    main()

"""What several ranks do in a time, beside one rank with one thread, and beside one process with a thread for each core.

    python benchmarks/ranks.py [--only pretrain,evaluate,distill,model] [--rounds 3] [--ranks 1,2,4,8] [--steps 8]

`pretrain` trains 4 networks (LeNet, 15,000 images of MNIST, two epochs), `evaluate` judges ten real images with 4 by
protocol dc (300 epochs, 2,000 test images), `distill` takes outer steps of method dd with 4 networks (3 inner steps,
1024 real images). Three sides take turns, another one first in every round, each in processes that have loaded
everything: `alone` (one rank, one thread), `threads` (one process, a thread for each core) and `ranks` (a rank for each
core, one thread each).
`speed` is what a side does in a time over what `alone` does: the median over rounds of the ratios within one.

`model` is the cost of an outer step by number of ranks: `seconds` as measured, `predicted` as

    rest + network x (networks of the busiest core) + meeting + gather

where `network` and `rest` come from steps with 4 and with 8 networks on one rank, `meeting` from ranks that meet with
nothing to say, and `gather` from ranks that give each other what such a step does (`bytes`), which begins with a
meeting too. More ranks than cores take
turns, so that `seconds` cannot fall any more there; what meetings cost grows, and is what this row is to show.

Prints one JSON line for each case.
"""

from common import environment, facts, ratio, turns  # first: it sets what PyTorch reads

# isort: split
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import datadistill as dd
from datadistill.baselines import RandomReal
from datadistill.distillation.problem import make_problem
from datadistill.training.recipe import DC
from datadistill.utils import ranks
from datadistill.utils.progress import Status

CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
NETWORKS, MEETINGS = 4, 100
CASES = ("pretrain", "evaluate", "distill")


class Times:
    """A reporter that remembers when outer steps ended."""

    def __init__(self) -> None:
        self.seconds = list[float]()

    def update(self, status: Status) -> None:
        self.seconds.append(time.perf_counter())

    def say(self, text: str) -> None:
        pass


class Work:
    """What is timed; every rank has one.

    Args:
        steps: outer steps that `distill` takes; the first and the last are not counted.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        real = dd.load("mnist")
        few = real.train.take(torch.arange(15_000))
        self.real = replace(real, train=few, test=real.test.take(torch.arange(2_000)))
        problem = make_problem(self.real, model="lenet", weights="random-init", ipc=1, device="cpu")
        (self.images,) = RandomReal(recipe=DC).run(problem)

    def pretrain(self) -> float:
        with tempfile.TemporaryDirectory() as folder:
            place = ranks.from_first(lambda: folder)
            began, training = time.perf_counter(), dd.TrainRecipe(epochs=2)
            out = Path(place) / "pool.safetensors"
            dd.make_pool(self.real, out, nets=NETWORKS, reserved=1, training=training, device="cpu")
            seconds = time.perf_counter() - began
            with ranks.together():
                pass  # the folder goes when all have read the pool
        return seconds

    def evaluate(self) -> float:
        began = time.perf_counter()
        dd.evaluate(self.images, self.real, nets=NETWORKS)
        return time.perf_counter() - began

    def distill(self, networks: int = NETWORKS) -> float:
        """Of one outer step."""
        times, outer = Times(), dd.Outer(eval_every=self.steps, settle=0)
        method = dd.methods.DD(steps=1, epochs=3, networks=networks)
        options: dict[str, Any] = {"model": "lenet", "weights": "random-init", "iterations": self.steps}
        dd.distill(self.real, method, outer=outer, reporter=times, device="cpu", **options)
        return (times.seconds[-2] - times.seconds[0]) / (self.steps - 2) if times.seconds else 0.0

    def eight(self) -> float:
        """Of one outer step with twice as many networks."""
        return self.distill(2 * NETWORKS)

    def meeting(self) -> float:
        """Of one meeting with nothing to say."""
        return _each(_meet)

    def gather(self) -> float:
        """Of giving each other the derivatives of one step, with the meeting that this begins with."""
        if ranks.count() == 1:
            return 0.0
        images = torch.zeros(10, 1, 28, 28)
        return _each(lambda: ranks.shared(lambda mine: [images] * len(mine), range(NETWORKS)))


def _meet() -> None:
    with ranks.together():
        pass


def _each(work: Any) -> float:
    times = []
    for _ in range(MEETINGS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def serve(steps: int) -> None:
    """Answer every line on standard input, a name of what is to be timed, with the seconds that it takes."""
    with ranks.joined():
        work = Work(steps)
        while name := ranks.from_first(sys.stdin.readline).strip():
            seconds = facts() if name == "facts" else getattr(work, name)()
            if ranks.leads():
                print(json.dumps(seconds), flush=True)


class Side:
    """Processes that do one job, asked through the first of them."""

    def __init__(self, count: int, threads: int, folder: str, steps: int) -> None:
        place = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "OMP_NUM_THREADS": threads}
        given = {name: str(value) for name, value in place.items()}
        given["DATADISTILL_MEETING"] = tempfile.mktemp(dir=folder)
        self.processes = []
        for rank in range(count):
            with environment({**given, "RANK": str(rank), "LOCAL_RANK": str(rank)}):
                command = [sys.executable, __file__, "--serve", "--steps", str(steps)]
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.processes.append(process)

    def ask(self, name: str) -> Any:
        first = self.processes[0]
        assert first.stdin is not None
        assert first.stdout is not None
        print(name, file=first.stdin, flush=True)
        answer = first.stdout.readline()
        if not answer:
            raise SystemExit("a benchmark process died")
        return json.loads(answer)

    def close(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes:
            process.wait()


def compared(case: str, sides: dict[str, Side], rounds: int) -> dict[str, Any]:
    """One case on all sides."""
    times = {name: list[float]() for name in sides}
    for name in sides:
        sides[name].ask(case)  # the first time is not like the others
    for name in turns(list(sides), rounds):
        times[name].append(sides[name].ask(case))
    seconds = {name: round(statistics.median(found), 4) for name, found in times.items()}
    speed = {name: round(ratio(times, "alone", name), 3) for name in sides}
    return {"case": case, "cores": CORES, "networks": NETWORKS, "rounds": rounds, "seconds": seconds, "speed": speed}


def model(counts: list[int], rounds: int, folder: str, steps: int) -> dict[str, Any]:
    """Measured and predicted cost of an outer step, by number of ranks."""
    alone = Side(1, 1, folder, steps)
    times = {"distill": list[float](), "eight": list[float]()}
    alone.ask("distill")  # the first time is not like the others
    for name in turns(list(times), rounds):
        times[name].append(alone.ask(name))
    alone.close()
    four, eight = (statistics.median(found) for found in times.values())
    # A busy machine can make the difference look smaller than nothing, or than all: neither part is below zero.
    network = min(max(eight - four, 0.0), four) / NETWORKS
    rest = four - NETWORKS * network
    rows = {}
    for count in counts:
        side = Side(count, 1, folder, steps)
        side.ask("distill")
        seconds = statistics.median(side.ask("distill") for _ in range(rounds))
        meeting, gather = (side.ask(name) for name in ("meeting", "gather"))
        side.close()
        busiest = max(-(-NETWORKS // count), -(-NETWORKS // CORES))
        # What every rank does for itself takes turns too, where there are more ranks than cores.
        predicted = rest * max(1, count / CORES) + network * busiest + meeting + gather
        found = {"seconds": seconds, "predicted": predicted, "meeting": meeting, "gather": gather}
        rows[count] = {name: round(value, 6) for name, value in found.items()}
    size = NETWORKS * 10 * 28 * 28 * 4
    return {"case": "model", "cores": CORES, "network": network, "rest": rest, "bytes": size, "ranks": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[*CASES, "model"], metavar="CASE,...")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--ranks", type=lambda text: [int(word) for word in text.split(",")], default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="outer steps, at least 3 (default: 8)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.steps < 3:
        parser.error(f"--steps is {given.steps}, but must be at least 3")
    if given.serve:
        serve(given.steps)
        return
    steps = given.steps
    with tempfile.TemporaryDirectory() as folder:
        if cases := [case for case in CASES if case in given.only]:
            sides = {
                "alone": Side(1, 1, folder, steps),
                "threads": Side(1, CORES, folder, steps),
                "ranks": Side(max(2, CORES), 1, folder, steps),
            }
            where = sides["threads"].ask("facts")
            for case in cases:
                print(json.dumps(compared(case, sides, given.rounds) | where), flush=True)
            for side in sides.values():
                side.close()
        if "model" in given.only:
            print(json.dumps(model(given.ranks, given.rounds, folder, steps)), flush=True)


if __name__ == "__main__":
    main()

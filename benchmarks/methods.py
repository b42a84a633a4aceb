"""What an outer step of each method costs: seconds, and live bytes at the peak.

    python benchmarks/methods.py [--dataset NAME] [--model NAME] [--method NAME,...] [--ipc N,...] [--rounds N]
                                 [--isa avx2] [--threads N,...]

Each method takes the same step three times, with the same draws: with the library as it is (`ours`); with the same
choices of the engine on PyTorch's own operations (`own`); and on those with every graph kept where there are inner
steps, as its authors do (`plain`). They take turns in one process, whose allocator keeps freed memory. The gradients
are compared first.

Prints one JSON line for each method, number of images per class and number of threads; a ratio of times is the median
over rounds of the ratios within a round:

    method, ipc     what is measured
    isa, threads, processor, kernels
                    where (see `common.py`)
    seconds, seconds_own, seconds_plain
                    medians
    time_ratio      our time over that of `plain`
    own_ratio       our time over that of `own`
    peak_bytes, peak_bytes_own, peak_bytes_plain
                    live tensors at the peak
    memory_ratio    ours over those of `plain`
    error           relative difference of our gradient and that of `plain`
    own_error       the same of `own` and `plain`

Real images per class and step are 64 (`--batch`). Trajectory matching steps 20 times on an expert that was trained on a
thousand images, and keeps weights instead of graphs (storage `recompute`; `auto` would keep graphs that fit).
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import torch

import datadistill as dd
from datadistill.distillation.problem import make_problem
from datadistill.engine import Engine, Workload, kernels
from datadistill.engine.functional import make_network
from datadistill.engine.memory import LiveBytes
from datadistill.methods import METHODS, Context, Method, Problem, plan
from datadistill.pretraining.config import EXPERT_TRAINING
from datadistill.pretraining.make import make_trajectories
from datadistill.pretraining.trajectories import Trajectories
from datadistill.utils.runtime import keep_freed_memory, stream

NAMES, STEPS = ("dc", "dsa", "dm", "mtt"), 20


def step(method: Method, problem: Problem) -> torch.Tensor:
    method = method.resolve(problem)
    start, state = method.init(problem, stream(0, "start"))
    return method.step(start, state, Context(problem, plan(method, problem)), stream(1)).gradients["images"]


def own(problem: Problem) -> Problem:
    """On PyTorch's own operations, with the choices that the engine has made for a step with ours."""
    other = replace(problem, network=make_network(problem.network.module, operations="off"))
    other.cache.update({key: engine for key, engine in problem.cache.items() if isinstance(key, Workload)})
    return other


def plain(problem: Problem) -> Problem:
    """On PyTorch's own operations, with every graph kept."""
    network = make_network(problem.network.module, operations="off")
    return replace(problem, network=network, engine=replace(problem.engine, storage="full", inner_chunk=10**6))


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def peak(method: Method, problem: Problem) -> int:
    with LiveBytes() as memory:
        step(method, problem)
    return memory.peak


def measured(method: Method, problem: Problem, rounds: int) -> dict[str, float]:
    found = {"ours": step(method, problem)}
    problems = {"ours": problem, "own": own(problem), "plain": plain(problem)}
    found |= {name: step(method, problems[name]) for name in ("own", "plain")}
    times: dict[str, list[float]] = {name: [] for name in problems}
    for name in common.turns(list(problems), rounds):
        began = time.perf_counter()
        step(method, problems[name])
        times[name].append(time.perf_counter() - began)
    peaks = {name: peak(method, here) for name, here in problems.items()}
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "seconds": seconds["ours"],
        "seconds_own": seconds["own"],
        "seconds_plain": seconds["plain"],
        "time_ratio": common.ratio(times, "ours", "plain"),
        "own_ratio": common.ratio(times, "ours", "own"),
        "peak_bytes": peaks["ours"],
        "peak_bytes_own": peaks["own"],
        "peak_bytes_plain": peaks["plain"],
        "memory_ratio": peaks["ours"] / peaks["plain"],
        "error": apart(found["ours"], found["plain"]),
        "own_error": apart(found["own"], found["plain"]),
    }


def problem_of(real: dd.RealData, model: str, ipc: int, trajectories: Trajectories | None) -> Problem:
    return make_problem(
        real,
        model=model,
        weights="random-init",
        scheme="default",
        ipc=ipc,
        seed=0,
        device=torch.device("cpu"),
        engine=Engine(storage="recompute"),
        trajectories=trajectories,
    )


def experts(real: dd.RealData, model: str, folder: Path) -> Trajectories:
    """One, trained for two epochs on a thousand images."""
    few = replace(real, train=real.train.take(torch.arange(min(1000, len(real.train.labels)))))
    training = replace(EXPERT_TRAINING, epochs=2, augment="none")
    return make_trajectories(few, folder / "experts", model=model, experts=1, training=training)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--model", default="convnet")
    parser.add_argument("--method", default=",".join(NAMES))
    parser.add_argument("--ipc", default="1,10")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data-root")
    common.add_flags(parser)
    given = parser.parse_args()
    common.use_isa(given.isa)
    keep_freed_memory()
    kernels.build()
    real = dd.load(given.dataset, given.data_root)
    names = given.method.split(",")
    with tempfile.TemporaryDirectory() as folder:
        trajectories = experts(real, given.model, Path(folder)) if "mtt" in names else None
        for name, ipc, threads in itertools.product(names, map(int, given.ipc.split(",")), given.threads):
            common.use_threads(threads)
            options: dict[str, Any] = {"batch": given.batch}
            if name == "mtt":
                options = {"student_steps": STEPS, "max_start_epoch": 0}
            problem = problem_of(real, given.model, ipc, trajectories if name == "mtt" else None)
            row = measured(METHODS.get(name).build({**options, "images": "real"}), problem, given.rounds)
            row = {key: float(f"{value:.4g}") for key, value in row.items()}
            print(json.dumps({"method": name, "ipc": ipc, **common.facts(), **row}), flush=True)


if __name__ == "__main__":
    main()

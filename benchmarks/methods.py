"""What an outer step of each method costs: seconds, and live bytes at the peak.

    python benchmarks/methods.py [--dataset NAME] [--model NAME] [--method NAME,...] [--ipc N,...] [--rounds N]

Each method takes a step with the library as it is, and the same step on PyTorch's own operations, with every graph kept
where there are inner steps, as its authors do; in turns, with the same draws. The two gradients are compared first.
Prints one JSON line for each method and number of images per class: `seconds` (median) and `peak_bytes` of both, their
ratios, and `error`, the relative difference of the gradients.

Real images per class and step are 64 (`--batch`). Trajectory matching steps 20 times on an expert that was trained on a
thousand images, and keeps weights instead of graphs (storage `recompute`; `auto` would keep graphs that fit).
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import datadistill as dd
from datadistill.inner import Engine, kernels
from datadistill.inner.functional import make_network
from datadistill.inner.memory import LiveBytes
from datadistill.methods import METHODS, Method, Problem, make_problem
from datadistill.recording import EXPERT_TRAINING, make_trajectories
from datadistill.runtime import keep_freed_memory, stream

NAMES, STEPS = ("dc", "dsa", "dm", "mtt"), 20


def step(method: Method, problem: Problem) -> torch.Tensor:
    start = method.start(problem, stream(0, "start"))
    return method.gradient(start, problem, {}, stream(1), 0.0).gradients.images


def plain(problem: Problem) -> Problem:
    """On PyTorch's own operations, with every graph kept."""
    network = make_network(problem.network.module, operations="off")
    return replace(problem, network=network, engine=replace(problem.engine, storage="full", inner_chunk=10**6))


def measured(method: Method, problem: Problem, rounds: int) -> dict[str, float]:
    other = plain(problem)
    found, expected = step(method, problem), step(method, other)
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(rounds):
        for name, here in (("ours", problem), ("plain", other)):
            began = time.perf_counter()
            step(method, here)
            times[name].append(time.perf_counter() - began)
    peaks = []
    for here in (problem, other):
        with LiveBytes() as memory:
            step(method, here)
        peaks.append(memory.peak)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "seconds": seconds["ours"],
        "seconds_plain": seconds["plain"],
        "time_ratio": seconds["ours"] / seconds["plain"],
        "peak_bytes": peaks[0],
        "peak_bytes_plain": peaks[1],
        "memory_ratio": peaks[0] / peaks[1],
        "error": float((found - expected).norm() / expected.norm()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--model", default="convnet")
    parser.add_argument("--method", default=",".join(NAMES))
    parser.add_argument("--ipc", default="1,10")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data-root")
    given = parser.parse_args()
    keep_freed_memory()
    kernels.build()
    real = dd.load(given.dataset, given.data_root)
    names = given.method.split(",")
    with tempfile.TemporaryDirectory() as folder:
        trajectories = None
        if "mtt" in names:
            few = replace(real, train=real.train.take(torch.arange(1000)))
            training = replace(EXPERT_TRAINING, epochs=2, augment="none")
            trajectories = make_trajectories(
                few, Path(folder) / "experts", model=given.model, experts=1, training=training
            )
        for name in names:
            for ipc in map(int, given.ipc.split(",")):
                options: dict[str, object] = {"batch": given.batch}
                if name == "mtt":
                    options = {"student_steps": STEPS, "max_start_epoch": 0}
                problem = make_problem(
                    real,
                    model=given.model,
                    weights="random-init",
                    scheme="default",
                    ipc=ipc,
                    seed=0,
                    device=torch.device("cpu"),
                    engine=Engine(storage="recompute"),
                    trajectories=trajectories if name == "mtt" else None,
                )
                row = measured(METHODS.get(name).build({**options, "images": "real"}), problem, given.rounds)
                row = {key: float(f"{value:.4g}") for key, value in row.items()}
                print(json.dumps({"method": name, "ipc": ipc, "threads": torch.get_num_threads(), **row}), flush=True)


if __name__ == "__main__":
    main()

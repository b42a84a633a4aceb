"""plan: what a run will need, before it starts: memory, time and disk."""

import argparse
import json
from dataclasses import asdict, replace
from typing import Any

from datadistill.cli.common import print_table
from datadistill.cli.config import add_config_flags, is_open, problem_given
from datadistill.cli.parsing import Parser, positive_int
from datadistill.distillation.optimizer import Outer, Variables
from datadistill.distillation.state import Best, RunState, pack
from datadistill.distilled import DistilledData
from datadistill.engine import Network, Prediction, kernels, predict
from datadistill.engine.config import Storage
from datadistill.engine.planner import Workload, memory_limit
from datadistill.utils.errors import RequestError
from datadistill.utils.progress import say, tell
from datadistill.utils.runtime import stream, versions

USAGE = ""
DESCRIPTION = """\
Predict what an outer step needs with each way of storing the inner loop, and say
which one a run would take. Small pieces of the step are computed and measured
for it, on random images; no data is distilled.

examples:
  datadistill plan
  datadistill plan --weights random-init --steps 10 --epochs 30
  datadistill plan --model ConvNetD3W128 --storage checkpoint --memory 2
"""

_STORAGES: tuple[Storage, ...] = ("full", "recompute", "checkpoint", "offload")
_CHECKPOINTS = 2


def add_flags(parser: Parser) -> None:
    add_config_flags(parser, skip=("iterations", "budget", "attack", "outer"))
    parser.add_argument(
        "--iterations", type=positive_int, metavar="N", default=1000, help="outer steps (default: %(default)s)"
    )
    parser.add_argument(
        "--ranks", type=positive_int, metavar="N", default=1, help="processes that share the work (docs/ranks.md)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(arguments: argparse.Namespace) -> None:
    method, problem = problem_given(arguments)
    if is_open(arguments):
        say(f"distill would choose methods by itself; this is of {method.name}: name another one with --method.")
    method = method.resolve(problem)
    disk = _disk(method.init(problem, stream(problem.seed, "start"))[0])
    if problem.device.type == "cpu" and problem.engine.kernels != "off":
        kernels.prepare(say)
        problem = problem.with_kernels(problem.engine.kernels)
    whole, image = method.workload(problem), problem.real.train.images[:1]
    demand = whole.of_rank(arguments.ranks)
    network = problem.with_model(demand.model).network
    weights = sum(weight.numel() * weight.element_size() for weight in network.module.parameters())
    chosen = predict(network, image, demand, problem.engine)
    exchanged = whole.exchanged(arguments.ranks, image.numel() * image.element_size(), weights, chosen.engine.chunk)
    others = []
    for storage in _STORAGES if problem.engine.storage == "auto" else ():
        if storage == chosen.engine.storage:
            others.append(chosen)
        elif storage != "offload" or problem.device.type != "cpu":
            try:
                others.append(predict(network, image, demand, replace(problem.engine, storage=storage)))
            except RequestError:
                continue  # this storage does not go with the HVP mode or the execution that was asked for
    if arguments.json:
        document = {
            "method": method.name,
            "model": problem.model,
            "dataset": problem.real.origin,
            "inner_steps": demand.steps,
            "networks": whole.networks,
            "ranks": arguments.ranks,
            "networks_per_rank": demand.networks,
            "exchanged_bytes": exchanged,
            "weight_bytes": weights,
            "chosen": _document(chosen),
            "all": [_document(other) for other in others or [chosen]],
            "memory_limit_bytes": memory_limit(problem.engine, problem.device),
            "disk_bytes": disk,
            "iterations": arguments.iterations,
            "seconds": chosen.seconds * arguments.iterations,
            "kernels": {
                name: {**found._asdict(), "used": name in network.operations}
                for name, found in kernels.measured().items()
            },
            "instruction_set": kernels.instruction_set(),
            "versions": versions(),
        }
        print(json.dumps(document, indent=2))
        return
    print_table(
        f"one outer step of method {method.name}: {problem.model}, {problem.kind}, {demand.steps} inner steps, "
        f"{demand.networks} network{'s' if demand.networks > 1 else ''}, {demand.real} real images",
        ["storage", "peak memory", "of it grows with steps", "seconds"],
        [_row(other, other is chosen) for other in others or [chosen]],
    )
    engine = chosen.engine
    limit = memory_limit(problem.engine, problem.device)
    tell(f"memory   {_size(chosen.peak_bytes)} above the data and the program; {_size(limit)} may be used")
    tell(f"time     {_duration(chosen.seconds * arguments.iterations)} for {arguments.iterations:,} outer steps")
    if arguments.ranks > 1:
        tell(f"ranks    {_shares(whole, demand, exchanged)}; {_size(exchanged)} from all to each in an outer step")
    tell(f"disk     {_size(disk)} for the run folder")
    tell(
        f"engine   storage {engine.storage}, hvp {engine.hvp}, execution {engine.execution}, "
        f"{engine.inner_chunk or demand.images} distilled and {engine.chunk or demand.real} real images at a time"
    )
    if problem.device.type == "cpu":
        tell(f"kernels  {_kernels(network)}")
    if chosen.peak_bytes > limit:
        tell(
            "         this is more than may be used: fewer networks, a smaller --batch or a smaller --inner-chunk help"
        )


def _shares(whole: Workload, demand: Workload, exchanged: int) -> str:
    """What one of several ranks does of an outer step."""
    if demand.networks < whole.networks:
        return f"{demand.networks} of {whole.networks} networks each, or classes"
    return "pieces of the real batch" if exchanged else "all do the same, in the same time as one"


def _kernels(network: Network) -> str:
    """Which of our operations are used, and the time of each over that of PyTorch's."""
    texts = [
        f"{name} {found.ratio:.2f}{'' if name in network.operations else ' (not used)'}"
        for name, found in kernels.measured().items()
    ]
    ours = f", time over PyTorch's: {', '.join(texts)}" if texts else ": PyTorch's own"
    return kernels.instruction_set() + ours


def _row(prediction: Prediction, is_chosen: bool) -> list[str]:
    name = prediction.engine.storage + ("" if prediction.engine.is_exact else ", approximate")
    return [
        f"{name}{' (chosen)' if is_chosen else ''}",
        _size(prediction.peak_bytes),
        _size(prediction.kept_bytes),
        f"{prediction.seconds:.3g}",
    ]


def _document(prediction: Prediction) -> dict[str, Any]:
    return {
        "engine": asdict(prediction.engine),
        "peak_bytes": prediction.peak_bytes,
        "kept_bytes": prediction.kept_bytes,
        "seconds": prediction.seconds,
    }


def _disk(start: DistilledData) -> int:
    """The run folder's tensors: the best data and the checkpoints, which hold the optimiser's moments too."""
    variables = Variables.of(start, ("images", "learning_rates", "soft_labels"), Outer())
    state = RunState(variables, best=Best(0.0, 0.0, 0, variables.average))
    tensors = [start.images, start.labels, *(start.initial_weights or {}).values()]
    result = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    checkpoint = sum(tensor.numel() * tensor.element_size() for tensor in pack(state).tensors.values())
    return result + _CHECKPOINTS * checkpoint


def _size(count: int) -> str:
    if count < 2**17:
        return f"{count / 2**10:.1f} KiB"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"

"""The engine against a plain reference: time, memory, and distance to the limit.

    python benchmarks/engine.py [--case NAME;...] [--rounds N] [--same-allocator] [--device cuda] [--isa avx2]
                                [--threads N,...]

The reference is written here for the purpose and does what the 2018 code does: it keeps the graph of every inner step,
differentiates backwards twice, one network after another, with PyTorch's own operations. A third side is the engine
once more, with the same choices and the same allocator, on PyTorch's own operations. Each side runs in a process of
its own, as its users run it, the reference with the allocator's defaults and the engine as the command line runs it
(`--same-allocator`: all keep freed memory). They take turns, step by step. Before anything is timed the
hypergradients are compared, in float64 and in float32; where one differs from the reference's by more than 1e-8 or
1e-4, the exit code is 1.

On a CUDA device the engine replays each network's outer step as a captured graph, as does the limit; TF32 is off for
both sides, and memory is what PyTorch has allocated and, as the second figure, reserved. There all operations are
PyTorch's own: there is no third side, and what is said of it is null.

Prints one JSON line for each case and number of threads; a ratio of times is the median over rounds of the ratios
within a round:

    case            what is measured
    isa, threads, processor, kernels
                    where (see `common.py`)
    time_ratio      the engine's time over the reference's
    own_ratio       the engine's time over that of the engine on PyTorch's own operations
    limit_ratio     the engine's time over that of plain gradients, three per inner step and one for the real batch
    memory_ratio    live tensors at the peak, the engine's over the reference's
    process_ratio   the same of the whole process
    error, error64  relative difference of the hypergradients, engine and reference, in float32 and in float64
    own_error, own_error64
                    the same of the engine on PyTorch's own operations
    ms              medians of `reference`, `ours`, `own` and `limit`
    mb              of each side, live tensors and process
    allocator       the reference's: `as shipped`, or the `same` as the engine's
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from datadistill.engine import (
    SGD,
    Engine,
    InnerStep,
    OuterLoss,
    Workload,
    kernels,
    make_network,
    outer_step,
    settle,
    walk,
)
from datadistill.engine.compiled import replayed
from datadistill.engine.functional import Weights, batch_gradient
from datadistill.engine.memory import LiveBytes
from datadistill.engine.parallel import map_on_cores
from datadistill.models.alexcifarnet import AlexCifarNet
from datadistill.models.convnet import ConvNet
from datadistill.models.init import draw_weights
from datadistill.models.lenet import LeNet
from datadistill.utils.runtime import keep_freed_memory, stream


class ReferenceAlexCifarNet(AlexCifarNet):
    """With PyTorch's own local response normalisation, and ReLU before pooling, as published."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LocalResponseNorm(4, 0.001 / 9, 0.75, 1)  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.pool(F.relu(self.conv1(images))))
        hidden = self.pool(self.norm(F.relu(self.conv2(hidden))))
        hidden = F.relu(self.fc1(hidden.flatten(1)))
        return self.fc3(F.relu(self.fc2(hidden)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    `lift` is added to the biases of normalisation, so that few ReLUs lie at their kinks.
    """

    name: str
    model: Callable[[], nn.Module]
    channels: int
    size: int
    images: int
    batches: int
    epochs: int
    networks: int
    real: int = 1024
    engine: Engine = field(default_factory=Engine)
    reference: Callable[[], nn.Module] | None = None
    rate: float = 0.02
    seed: int = 0
    lift: float = 0.0


def _with_graphs(case: Case) -> Case:
    """The same with every graph kept, which is what `auto` takes where they fit."""
    return replace(case, name=f"{case.name}, graphs kept", engine=Engine(storage="full"))


SHORT = Case("LeNet, 10 images, 1x3, 1 network", LeNet, 1, 28, 10, 1, 3, 1, seed=5)
LENET = Case(
    "LeNet, 100 images, 10x3, 4 networks", LeNet, 1, 28, 10, 10, 3, 4, engine=Engine(storage="recompute"), seed=2
)
LONG = replace(
    LENET,
    name="LeNet, 100 images, 10x30, 4 networks",
    epochs=30,
    rate=0.0003,
    seed=7,
    engine=Engine(storage="checkpoint", every=6, chunk=64),
)
CONVNET = Case(
    "ConvNetD3W128, 100 images, T = 10",
    lambda: ConvNet(10, 1, 28),
    1,
    28,
    100,
    1,
    10,
    1,
    256,
    engine=Engine(storage="recompute"),
    rate=0.0001,
    lift=4.0,
)
ALEX = Case(
    "AlexCifarNet, 100 images, 10x3, 1 network",
    AlexCifarNet,
    3,
    32,
    10,
    10,
    3,
    1,
    engine=Engine(storage="recompute"),
    reference=ReferenceAlexCifarNet,
    rate=0.0001,
    seed=12,
)
CASES = (SHORT, *(version for case in (LENET, LONG, CONVNET, ALEX) for version in (case, _with_graphs(case))))


MOST = {"float32": 1e-4, "float64": 1e-8}
"""By which two hypergradients may differ, relative to their length."""


@dataclass(frozen=True)
class Work:
    """What both sides are given: the same weights, distilled batches and real batch."""

    case: Case
    weights: list[Weights]
    images: Tensor
    labels: Tensor
    rates: Tensor
    real: Tensor
    real_labels: Tensor

    @classmethod
    def of(cls, case: Case, device: torch.device, dtype: torch.dtype) -> "Work":
        draw = stream(case.seed, "engine")
        shape = (case.channels, case.size, case.size)
        module = case.model()
        norms = {f"{name}.bias" for name, layer in module.named_modules() if isinstance(layer, nn.GroupNorm)}
        return cls(
            case,
            [
                {
                    n: (w + case.lift if n in norms else w).to(device, dtype)
                    for n, w in draw_weights(module, "xavier", draw).items()
                }
                for _ in range(case.networks)
            ],
            torch.randn((case.batches, case.images, *shape), generator=draw).to(device, dtype),
            (torch.arange(case.images) % 10).to(device),
            torch.full((case.batches * case.epochs,), case.rate).to(device, dtype),
            torch.randn((case.real, *shape), generator=draw).to(device, dtype),
            torch.randint(10, (case.real,), generator=draw).to(device),
        )


def _moved(weights: Weights, device: torch.device, dtype: torch.dtype) -> Weights:
    return {name: weight.to(device, dtype) for name, weight in weights.items()}


class Reference:
    """Every graph kept, backwards twice, one network after another."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.module = (work.case.reference or work.case.model)().to(work.images)

    def __call__(self) -> tuple[Tensor, Tensor]:
        images, rates = torch.zeros_like(self.work.images), torch.zeros_like(self.work.rates)
        for weights in self.work.weights:
            one = self._through(weights)
            images += one[0] / len(self.work.weights)
            rates += one[1] / len(self.work.weights)
        return images, rates

    def _loss(self, weights: Weights, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(self.module, weights, (images,)), labels)

    def _through(self, weights: Weights) -> tuple[Tensor, Tensor]:
        work = self.work
        pixels = [batch.detach().requires_grad_() for batch in work.images]
        at = {name: w.detach().requires_grad_() for name, w in weights.items()}
        graphs = []
        for t, rate in enumerate(work.rates):
            loss = self._loss(at, pixels[t % len(pixels)], work.labels)
            gradient = torch.autograd.grad(loss, list(at.values()), create_graph=True)
            graphs.append((at, gradient))
            at = {
                n: torch.addcmul(w, g, -rate).detach().requires_grad_()
                for (n, w), g in zip(at.items(), gradient, strict=True)
            }
        v = torch.autograd.grad(self._loss(at, work.real, work.real_labels), list(at.values()))
        images, rates = torch.zeros_like(work.images), torch.zeros_like(work.rates)
        for t in reversed(range(len(work.rates))):
            at, gradient = graphs.pop()
            rates[t] = -torch.stack([(a * b).sum() for a, b in zip(v, gradient, strict=True)]).sum().detach()
            along = [-work.rates[t] * a for a in v]
            batch = t % len(pixels)
            *pulled, pulled_images = torch.autograd.grad(gradient, [*at.values(), pixels[batch]], along)
            images[batch] += pulled_images
            v = [a + b for a, b in zip(v, pulled, strict=True)]
        return images, rates


class Ours:
    """The engine, with what `settle` chooses for our own operations, whichever operations it then runs on."""

    def __init__(self, work: Work, operations: str = "auto") -> None:
        self.work, case, on_gpu = work, work.case, work.images.is_cuda
        if not on_gpu:
            kernels.build()
        module = case.model().to(work.images)
        settled = make_network(module)
        self.network = settled if operations == "auto" else make_network(module, operations=operations)
        demand = Workload(len(work.rates), case.images, case.images * case.batches, 10, case.networks, case.real, SGD())
        engine = replace(case.engine, execution="graph", chunk=0) if on_gpu else case.engine
        self.engine = settle(settled, work.real[:1], demand, engine)

    @property
    def steps(self) -> list[InnerStep]:
        work = self.work
        numbers = [t % len(work.images) for t in range(len(work.rates))]
        return [InnerStep(work.images[n], work.labels, rate, n) for n, rate in zip(numbers, work.rates, strict=True)]

    def outer(self, last: Weights, real: Tensor, labels: Tensor) -> tuple[Tensor, Weights]:
        return batch_gradient(self.network, last, real, labels, self.engine.chunk)

    def __call__(self) -> tuple[Tensor, Tensor]:
        work = self.work

        def through(weights: Weights) -> tuple[Tensor, Tensor]:
            loss = OuterLoss(self.outer, [work.real, work.real_labels])
            found = outer_step(self.network, SGD(), weights, self.steps, loss, self.engine)
            images = torch.zeros_like(work.images)
            for batch, gradient in found.images.items():
                images[batch] = gradient
            return images, found.rates

        results = map_on_cores(through, work.weights, work.images.device)
        return torch.stack([r[0] for r in results]).mean(0), torch.stack([r[1] for r in results]).mean(0)

    def limit(self) -> None:
        """Three plain gradients for every inner step and one for the real batch, as the same cores share them."""
        work, names, steps = self.work, list(self.work.weights[0]), self.steps

        def flat(tensors: list[Tensor]) -> list[Tensor]:
            weights, found = dict(zip(names, tensors, strict=True)), list[Tensor]()
            for _ in range(3):
                *_, last = walk(self.network, SGD(), weights, steps)
                found += last.values()
            return found + list(self.outer(weights, work.real, work.real_labels)[1].values())

        def gradients(weights: Weights) -> None:
            given = list(weights.values())
            replayed(self.network, "limit", flat, given) if work.images.is_cuda else flat(given)

        map_on_cores(gradients, self.work.weights, self.work.images.device)


def resident(field: str) -> int:
    """`VmRSS` or `VmHWM` of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


class Memory:
    """Peak memory above what is there now: of the device, or of the process on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before, self.reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        else:
            Path("/proc/self/clear_refs").write_text("5")
            self.before = resident("VmRSS")

    def peak(self) -> list[int]:
        """Of what is allocated and of what is reserved on a device; of the process."""
        if self.device.type == "cuda":
            return [
                torch.cuda.max_memory_allocated() - self.before,
                torch.cuda.max_memory_reserved() - self.reserved,
            ]
        return [resident("VmHWM") - self.before]


SIDES: dict[str, Callable[[Work], Any]] = {
    "reference": Reference,
    "ours": Ours,
    "own": partial(Ours, operations="off"),
}


def serve(side: str, name: str, device: torch.device) -> None:
    """One side: does what standard input asks for, and answers with one JSON line each time."""
    torch.backends.cudnn.allow_tf32 = False  # single precision is to agree to 1e-4, and TF32 has ten bits
    case = next(case for case in CASES if case.name == name)
    make = SIDES[side]
    # A small case first, so that libraries and thread pools are there before memory is measured.
    make(Work.of(replace(case, images=1, batches=1, epochs=2, networks=1, real=2), device, torch.float32))()
    runner = make(Work.of(case, device, torch.float32))
    for line in sys.stdin:
        order, _, rest = line.strip().partition(" ")
        if order == "memory":
            memory = Memory(device)
            runner()  # where graphs are captured, that is now, and later replays show nothing of it
            answer: Any = memory.peak()
            if device.type == "cpu":
                with LiveBytes() as live:
                    runner()
                answer = [live.peak, *answer]
        elif order == "save":
            dtype, path = rest.split(" ", 1)
            chosen = runner if dtype == "float32" else make(Work.of(case, device, torch.float64))
            images, rates = chosen()
            save_file({"images": images.cpu().contiguous(), "rates": rates.cpu().contiguous()}, path)
            answer = None
        elif order == "facts":
            answer = common.facts()
        else:
            began = time.perf_counter()
            runner() if order == "step" else runner.limit()
            if device.type == "cuda":
                torch.cuda.synchronize()
            answer = time.perf_counter() - began
        print(json.dumps(answer), flush=True)


def difference(one: str, other: str) -> float:
    """Relative difference of two saved hypergradients, images and rates together."""
    a, b = load_file(one), load_file(other)
    return max(float((a[key].double() - b[key].double()).norm() / b[key].double().norm()) for key in a)


def compared(name: str, start: dict[str, Callable[[], common.Side]]) -> dict[str, dict[str, float]]:
    """By how much each side's hypergradients differ from the reference's, by side and type.

    Each is found in a process that is gone afterwards: in double precision, with graphs kept, several would not fit.
    """
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in start:
            process = start[side]()
            for dtype in MOST:
                process.ask(f"save {dtype} {folder}/{dtype}-{side}")
            process.close()
        for side, (dtype, most) in itertools.product([side for side in start if side != "reference"], MOST.items()):
            error = difference(f"{folder}/{dtype}-{side}", f"{folder}/{dtype}-reference")
            found.setdefault(side, {})[dtype] = float(f"{error:.1e}")
            if error > most:
                print(f"{name}: hypergradients of {side} differ by {error:.1e} in {dtype}", file=sys.stderr)
    return found


def timed(sides: dict[str, common.Side], rounds: int) -> dict[str, list[float]]:
    """Seconds in each round: a step of each side, and the limit."""
    orders = {side: (process, "step") for side, process in sides.items()}
    orders["limit"] = sides["ours"], "limit"
    sides["ours"].ask("limit")  # which may be captured then
    times: dict[str, list[float]] = {name: [] for name in orders}
    for name in common.turns(list(orders), rounds):
        process, order = orders[name]
        times[name].append(process.ask(order))
    return times


def starters(case: Case, threads: int, device: str, same: bool) -> dict[str, Callable[[], common.Side]]:
    """What starts a side, by its name, the reference first."""
    found = {}
    for side in SIDES if device == "cpu" else ("reference", "ours"):
        command = [__file__, "--serve", side, "--case", case.name, "--device", device, "--threads", str(threads)]
        plain = side == "reference"
        words = command if plain and not same else [*command, "--same-allocator"]
        found[side] = partial(common.Side, words, common.SPINNING if plain else None)
    return found


def measure(case: Case, rounds: int, threads: int, device: str, same: bool) -> tuple[dict[str, Any], bool]:
    """The line of a case, and whether the hypergradients agree."""
    start = starters(case, threads, device, same)
    errors = compared(case.name, start)
    sides = {side: begin() for side, begin in start.items()}
    memory = {side: process.ask("memory") for side, process in sides.items()}
    times = timed(sides, rounds)
    facts = sides["ours"].ask("facts")
    for process in sides.values():
        process.close()
    own = errors.get("own", {})
    live, whole = (memory["ours"][place] / max(1, memory["reference"][place]) for place in (0, 1))
    line = {
        "case": case.name,
        **facts,
        "time_ratio": round(common.ratio(times, "ours", "reference"), 3),
        "own_ratio": round(common.ratio(times, "ours", "own"), 3) if own else None,
        "limit_ratio": round(common.ratio(times, "ours", "limit"), 3),
        "memory_ratio": round(live, 3),
        "process_ratio": round(whole, 3),
        "error": errors["ours"]["float32"],
        "error64": errors["ours"]["float64"],
        "own_error": own.get("float32"),
        "own_error64": own.get("float64"),
        "ms": {name: round(1e3 * statistics.median(part), 1) for name, part in times.items()},
        "mb": {side: [round(part / 2**20, 1) for part in parts] for side, parts in memory.items()},
        "allocator": "same" if same else "as shipped",
    }
    return line, all(error <= MOST[dtype] for found in errors.values() for dtype, error in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="", help="only cases whose names contain one of these, separated by ;")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--same-allocator", action="store_true")
    parser.add_argument("--serve", choices=tuple(SIDES), help=argparse.SUPPRESS)
    common.add_flags(parser)
    given = parser.parse_args()
    if given.serve:
        if given.same_allocator:
            keep_freed_memory()
        common.use_threads(given.threads[0])
        serve(given.serve, given.case, torch.device(given.device))
        return
    common.use_isa(given.isa)
    if given.device == "cpu":
        kernels.build()  # once, before several sides want them
    agree = True
    chosen = [case for case in CASES if any(part in case.name for part in given.case.split(";"))]
    for case, threads in itertools.product(chosen, given.threads):
        found, agrees = measure(case, given.rounds, threads, given.device, given.same_allocator)
        print(json.dumps(found), flush=True)
        agree = agree and agrees
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()

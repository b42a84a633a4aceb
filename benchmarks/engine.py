"""The engine against a plain reference: time, memory, and distance to the limit.

    python benchmarks/engine.py [--case NAME,...] [--rounds N] [--same-allocator] [--device cuda]

The reference is written here for the purpose and does what the 2018 code does: it keeps the graph of every inner step,
differentiates backwards twice, one network after another, with PyTorch's own operations. Each side runs in a process of
its own, as its users run it, the reference with the allocator's defaults and the engine as the command line runs it
(`--same-allocator`: both keep freed memory). The two take turns, step by step. Before anything is timed their
hypergradients are compared, in float64 and in float32; where they differ by more than 1e-8 or 1e-4, the exit code
is 1.

On a CUDA device the engine replays each network's outer step as a captured graph, as does the limit; TF32 is off for
both sides, and memory is what PyTorch has allocated and, as the second figure, reserved.

Prints one JSON line for each case: `time_ratio` and `memory_ratio` are the engine's over the reference's, medians;
of live tensors and of the whole process (`process_ratio`); `error` is the relative difference of the hypergradients in
float32, and `error64` in float64; `limit_ratio` is the engine's time over that of plain gradients, three per inner step
and one for the real batch.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from datadistill.inner import SGD, Demand, Engine, InnerStep, kernels, make_network, outer_step, settle, walk
from datadistill.inner.execution import replayed
from datadistill.inner.functional import Weights, batch_gradient
from datadistill.inner.memory import LiveBytes
from datadistill.inner.parallel import map_on_cores
from datadistill.models.alexcifarnet import AlexCifarNet
from datadistill.models.convnet import ConvNet
from datadistill.models.lenet import LeNet
from datadistill.models.schemes import draw_weights
from datadistill.runtime import keep_freed_memory, stream


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


CASES = (
    Case("LeNet, 10 images, 1x3, 1 network", LeNet, 1, 28, 10, 1, 3, 1),
    Case("LeNet, 100 images, 10x3, 4 networks", LeNet, 1, 28, 10, 10, 3, 4, engine=Engine(storage="recompute"), seed=2),
    Case(
        "LeNet, 100 images, 10x30, 4 networks",
        LeNet,
        1,
        28,
        10,
        10,
        30,
        4,
        rate=0.0003,
        seed=7,
        engine=Engine(storage="checkpoint", every=6, chunk=64),
    ),
    Case(
        "ConvNetD3W128, 100 images, T = 10",
        lambda: ConvNet(10, 1, 28),
        1,
        28,
        100,
        1,
        10,
        1,
        256,
        rate=0.0001,
        lift=4.0,
    ),
    Case(
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
    ),
)


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
    """The engine, with what `settle` chooses."""

    def __init__(self, work: Work) -> None:
        self.work, case, on_gpu = work, work.case, work.images.is_cuda
        if not on_gpu:
            kernels.build()
        self.network = make_network(case.model().to(work.images))
        demand = Demand(len(work.rates), case.images, case.images * case.batches, 10, case.networks, case.real, SGD())
        engine = replace(case.engine, execution="graph", chunk=0) if on_gpu else case.engine
        self.engine = settle(self.network, work.real[:1], demand, engine)

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
            around = [work.real, work.real_labels]
            found = outer_step(self.network, SGD(), weights, self.steps, self.outer, around, self.engine)
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


def serve(side: str, name: str, device: torch.device) -> None:
    """One side: does what standard input asks for, and answers with one JSON line each time."""
    torch.backends.cudnn.allow_tf32 = False  # single precision is to agree to 1e-4, and TF32 has ten bits
    case = next(case for case in CASES if case.name == name)
    make: Callable[[Work], Any] = Ours if side == "ours" else Reference
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
        else:
            began = time.perf_counter()
            runner() if order == "step" else runner.limit()
            if device.type == "cuda":
                torch.cuda.synchronize()
            answer = time.perf_counter() - began
        print(json.dumps(answer), flush=True)


class Side:
    """A process that serves."""

    def __init__(self, side: str, case: str, device: str, keep: bool) -> None:
        command = [sys.executable, __file__, "--serve", side, "--case", case, "--device", device]
        command += ["--same-allocator"] if keep else []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

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


def difference(one: str, other: str) -> float:
    """Relative difference of two saved hypergradients, images and rates together."""
    a, b = load_file(one), load_file(other)
    return max(float((a[key].double() - b[key].double()).norm() / b[key].double().norm()) for key in a)


def measure(case: Case, rounds: int, device: str, same: bool) -> tuple[dict[str, Any], bool]:
    """The line of a case, and whether the hypergradients agree."""
    with tempfile.TemporaryDirectory() as folder:
        sides = [Side("reference", case.name, device, same), Side("ours", case.name, device, True)]
        memory = [side.ask("memory") for side in sides]
        errors = {}
        for dtype, most in MOST.items():
            paths = [f"{folder}/{dtype}-{index}" for index in range(2)]
            for side, path in zip(sides, paths, strict=True):
                side.ask(f"save {dtype} {path}")
            errors[dtype] = difference(paths[1], paths[0])
            if errors[dtype] > most:
                print(f"{case.name}: hypergradients differ by {errors[dtype]:.1e} in {dtype}", file=sys.stderr)
        sides[1].ask("limit")  # which may be captured then
        times: list[list[float]] = [[], [], []]
        for _ in range(rounds):
            times[0].append(sides[0].ask("step"))
            times[1].append(sides[1].ask("step"))
            times[2].append(sides[1].ask("limit"))
        for side in sides:
            side.close()
    ratios = [ours / theirs for theirs, ours, _ in zip(*times, strict=True)]
    limits = [ours / limit for _, ours, limit in zip(*times, strict=True)]
    line = {
        "case": case.name,
        "time_ratio": round(statistics.median(ratios), 3),
        "memory_ratio": round(memory[1][0] / max(1, memory[0][0]), 3),
        "process_ratio": round(memory[1][1] / max(1, memory[0][1]), 3),
        "error": float(f"{errors['float32']:.1e}"),
        "error64": float(f"{errors['float64']:.1e}"),
        "limit_ratio": round(statistics.median(limits), 3),
        "ms": [round(1e3 * statistics.median(part), 1) for part in times],
        "mb": [[round(part / 2**20, 1) for part in side] for side in memory],
        "allocator": "same" if same else "as shipped",
    }
    return line, all(errors[dtype] <= most for dtype, most in MOST.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="", help="only cases whose names contain one of these, separated by ;")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--same-allocator", action="store_true")
    parser.add_argument("--serve", choices=("reference", "ours"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        if arguments.same_allocator:
            keep_freed_memory()
        serve(arguments.serve, arguments.case, torch.device(arguments.device))
        return
    agree = True
    for case in CASES:
        if any(part in case.name for part in arguments.case.split(";")):
            found, agrees = measure(case, arguments.rounds, arguments.device, arguments.same_allocator)
            print(json.dumps(found), flush=True)
            agree = agree and agrees
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()

"""What judging by protocol dc costs: seconds for a network's training step, against a plain reference.

    python benchmarks/judging.py [--case NAME,...] [--nets N] [--epochs N] [--rounds N] [--isa avx2] [--threads N,...]

The reference trains one network after another with `torch.optim.SGD` on PyTorch's own operations, each on all cores, as
the code of 2021 does. Ours has a core for each network. A third side is ours on PyTorch's own operations, with the same
allocator. Each side runs in a process of its own, as its users run it, and they take turns. First, what three epochs
made of the same initial weights is compared.

Prints one JSON line for each case and number of threads; a ratio is the median over rounds of the ratios within a
round:

    case, nets      what is measured
    isa, threads, processor, kernels
                    where (see `common.py`)
    seconds, seconds_own, seconds_plain
                    medians, for one step of one network: ours, ours on PyTorch's own operations, the reference
    time_ratio      our time over the reference's
    own_ratio       our time over that on PyTorch's own operations
    limit_ratio     our time over that of the library's convolutions alone, forwards and both derivatives, shared among
                    the cores as ours are
    error           relative difference between the ways that a network went, ours and the reference's: the largest
    own_error       the same of ours on PyTorch's own operations
"""

import argparse
import itertools
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datadistill.data.real import Split
from datadistill.engine import kernels, make_network
from datadistill.engine.functional import Weights
from datadistill.engine.parallel import each_on_one_core
from datadistill.models.convnet import ConvNet
from datadistill.models.init import draw_weights
from datadistill.training.fit import PIECE, fit
from datadistill.training.recipe import DC
from datadistill.utils.runtime import keep_freed_memory, stream

CPU = torch.device("cpu")
SETTINGS = replace(DC, schedule="constant")


@dataclass(frozen=True)
class Case:
    """A number of images of some shape, on which ConvNets of three blocks of 128 channels are trained."""

    name: str
    images: int
    shape: tuple[int, int, int]

    def module(self) -> ConvNet:
        return ConvNet(in_channels=self.shape[0], image_size=self.shape[1])

    def batch(self) -> tuple[Tensor, Tensor]:
        draw = stream(0, "images")
        return torch.randn(self.images, *self.shape, generator=draw), torch.arange(self.images) % 10

    def start(self, net: int) -> Weights:
        return draw_weights(self.module(), "default", stream(net, "start"))


CASES = (
    Case("10 images 1x28x28", 10, (1, 28, 28)),
    Case("100 images 1x28x28", 100, (1, 28, 28)),
    Case("100 images 3x32x32", 100, (3, 32, 32)),
)


def ours(case: Case, nets: int, epochs: int, operations: str = "auto") -> list[Weights]:
    network, split = make_network(case.module(), operations=operations), Split(*case.batch(), num_classes=10)
    training = replace(SETTINGS, epochs=epochs)
    # Before there are threads: making a module draws from the generator that initial weights are drawn from too.
    starts = [case.start(net) for net in range(nets)]

    def one(net: int) -> Weights:
        return fit(network, starts[net], split, training, stream(net))

    return each_on_one_core(one, range(nets), CPU)


def plain(case: Case, nets: int, epochs: int) -> list[Weights]:
    images, labels = case.batch()
    found = []
    for net in range(nets):
        module = case.module()
        module.load_state_dict(case.start(net))
        optimizer = torch.optim.SGD(
            module.parameters(), lr=0.01, momentum=SETTINGS.momentum, weight_decay=SETTINGS.weight_decay
        )
        for _ in range(epochs):
            optimizer.zero_grad()
            F.cross_entropy(module(images), labels).backward()
            optimizer.step()
        found.append({name: weight.detach() for name, weight in module.named_parameters()})
    return found


def convolutions(case: Case, nets: int, epochs: int) -> list[Weights]:
    """The library's convolutions with channels innermost, on pieces as large as ours; nothing else."""
    shapes: list[tuple[nn.Conv2d, torch.Size]] = []
    module = case.module()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, inputs, output: shapes.append((layer, inputs[0].shape)))
    pieces = -(-case.images // PIECE)
    with torch.no_grad():
        module(torch.zeros(case.images // pieces, *case.shape))

    def one(net: int) -> Weights:
        last = torch.channels_last
        given = [
            (layer, torch.randn(shape).to(memory_format=last), layer.weight.detach().to(memory_format=last))
            for layer, shape in shapes
        ]
        for _ in range(epochs * pieces):
            for place, (layer, images, weight) in enumerate(given):
                padding: Any = layer.padding
                gradient = F.conv2d(images, weight, None, 1, padding)
                torch.ops.aten.convolution_backward(
                    gradient, images, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [place > 0, True, False]
                )
        return {}

    return each_on_one_core(one, range(nets), CPU)


SIDES: dict[str, Callable[[Case, int, int], list[Weights]]] = {
    "ours": ours,
    "own": partial(ours, operations="off"),
    "plain": plain,
    "convolutions": convolutions,
}


def serve(side: str, case: Case, threads: int, there: Connection) -> None:
    """Say where this is; run a side as often as is asked for, and answer with the weights or with how long it took."""
    common.use_threads(threads)
    if side != "plain":
        keep_freed_memory()
        kernels.build()
    there.send(common.facts() if side == "ours" else None)
    while (asked := there.recv()) is not None:
        nets, epochs, timed = asked
        began = time.perf_counter()
        found = SIDES[side](case, nets, epochs)
        there.send(time.perf_counter() - began if timed else found)


def apart(one: Weights, other: Weights, start: Weights) -> float:
    """The relative difference between two ways from the same start."""
    way, difference = (
        torch.stack([(a[name] - b[name]).double().square().sum() for name in start]).sum().sqrt()
        for a, b in ((one, start), (one, other))
    )
    return float(difference / way)


def compared(case: Case, nets: int, ends: dict[str, Connection]) -> dict[str, float]:
    """By how much the ways of ours and of ours on PyTorch's own operations differ from the reference's."""
    made: dict[str, list[Weights]] = {}
    for side, end in ends.items():
        end.send((nets, 3, False))
        made[side] = end.recv()
    starts = [case.start(net) for net in range(nets)]
    return {side: max(map(apart, made[side], made["plain"], starts)) for side in ("ours", "own")}


def measure(case: Case, nets: int, epochs: int, rounds: int, threads: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    processes = []
    for side in SIDES:
        ends[side], there = context.Pipe()
        processes.append(context.Process(target=serve, args=(side, case, threads, there), daemon=True))
        with common.environment(common.SPINNING if side == "plain" else {}):
            processes[-1].start()
    facts = {side: end.recv() for side, end in ends.items()}["ours"]
    errors = compared(case, nets, ends)
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for side in common.turns(list(SIDES), rounds):
        ends[side].send((nets, epochs, True))
        times[side].append(ends[side].recv() / (nets * epochs))
    for process, end in zip(processes, ends.values(), strict=True):
        end.send(None)
        process.join()
    seconds = {side: statistics.median(values) for side, values in times.items()}
    row = {
        "seconds": seconds["ours"],
        "seconds_own": seconds["own"],
        "seconds_plain": seconds["plain"],
        "time_ratio": common.ratio(times, "ours", "plain"),
        "own_ratio": common.ratio(times, "ours", "own"),
        "limit_ratio": common.ratio(times, "ours", "convolutions"),
        "error": errors["ours"],
        "own_error": errors["own"],
    }
    return {"case": case.name, "nets": nets, **facts, **{key: float(f"{row[key]:.3g}") for key in row}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", help="those whose name begins so")
    parser.add_argument("--nets", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    common.add_flags(parser)
    given = parser.parse_args()
    common.use_isa(given.isa)
    kernels.build()  # once, before several sides want them
    chosen = [case for case in CASES if given.case is None or case.name.startswith(tuple(given.case.split(",")))]
    for case, threads in itertools.product(chosen, given.threads):
        print(json.dumps(measure(case, given.nets, given.epochs, given.rounds, threads)), flush=True)


if __name__ == "__main__":
    main()

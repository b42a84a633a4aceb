"""One step's gradient and second derivative, each way that the engine knows, on one core.

    python benchmarks/products.py [--compiled]

Prints one JSON line for each network: milliseconds (medians) for a gradient and for each product, with PyTorch's own
operations (`torch`) and with the fast ones (`ours`); for four networks, one after another and batched with vmap; and
with `--compiled` for the forward product through PyTorch's compiler, which takes minutes to build.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from datadistill.engine import Engine, kernels, make_network
from datadistill.engine.compiled import hvp_function
from datadistill.engine.functional import Weights, batch_gradient
from datadistill.models import draw_weights
from datadistill.models.convnet import ConvNet
from datadistill.models.lenet import LeNet
from datadistill.utils.runtime import keep_freed_memory, stream

CASES: dict[str, tuple[Callable[[], torch.nn.Module], int]] = {
    "LeNet, 10 images": (LeNet, 10),
    "LeNet, 100 images": (LeNet, 100),
    "ConvNetD3W128, 10 images of 28x28": (lambda: ConvNet(10, 1, 28), 10),
}
NETWORKS = 4


def milliseconds(work: Callable[[], Any], seconds: float = 1.0) -> float:
    work()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return round(1e3 * statistics.median(times), 3)


def measure(name: str, compiled: bool) -> dict[str, Any]:
    make, count = CASES[name]
    module = make()
    images, labels = torch.randn(count, *_shape(), generator=stream(0)), torch.arange(count) % 10
    weights = [draw_weights(module, "xavier", stream(i)) for i in range(NETWORKS)]
    along = draw_weights(module, "xavier", stream(9))
    found: dict[str, Any] = {"case": name}

    def product(network: Any, engine: Engine) -> float:
        function = hvp_function(engine)
        return milliseconds(lambda: function(network, weights[0], images, labels, None, along, 0.0))

    for kind in ("torch", "ours"):
        network = make_network(module, operations="auto" if kind == "ours" else "off")
        gradient = milliseconds(lambda network=network: batch_gradient(network, weights[0], images, labels, 0))
        found[kind] = {"gradient": gradient, "reverse": product(network, Engine(hvp="reverse", execution="eager"))}
    plain = make_network(module, operations="off")
    found["torch"]["forward"] = product(plain, Engine(hvp="forward", execution="eager"))
    if compiled:
        found["torch"]["forward, compiled"] = product(plain, Engine(hvp="forward", execution="compiled"))
    stacked = {key: torch.stack([w[key] for w in weights]) for key in weights[0]}

    def batched() -> Weights:
        one = torch.func.grad(lambda w: plain.loss(w, images, labels))
        return torch.func.vmap(one)(stacked)  # type: ignore[no-any-return]

    def in_turn() -> None:
        for w in weights:
            batch_gradient(plain, w, images, labels, 0)

    found["four gradients"] = {"one after another": milliseconds(in_turn), "vmap": milliseconds(batched)}
    return found


def _shape() -> tuple[int, int, int]:
    return 1, 28, 28


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--case", default="", help="only cases whose names contain this")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    kernels.build()
    for name in CASES:
        if arguments.case in name:
            print(json.dumps(measure(name, arguments.compiled)), flush=True)


if __name__ == "__main__":
    main()

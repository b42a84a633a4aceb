"""Do the hypergradients of different random networks agree? Without agreement there is nothing to descend along.

    python benchmarks/agreement.py [PATH] [--networks N]

With a PATH: for that distilled set. Without one: for random real images of MNIST as LeNet meets them at the start of a
run, 100 images in 10 steps x 3 epochs, for several learning rates, constant and falling.

Prints one JSON line for each case: `loss` and `accuracy` on 500 training images after the steps, means over networks;
`length`, the median length of one network's gradient of the images, and `longest`; `cosine`, the mean cosine between
the gradients of two networks: 0 where they have nothing in common.
"""

import argparse
import json

import torch
import torch.nn.functional as F

import datadistill as dd
from datadistill.distillation.problem import make_problem
from datadistill.engine import SGD, Engine, Network, hypergradient, kernels, with_noise
from datadistill.engine.functional import Weights, batch_gradient
from datadistill.methods import Problem
from datadistill.utils.runtime import keep_freed_memory, stream

ENGINE = Engine(storage="recompute", hvp="reverse", execution="eager", inner_chunk=0, chunk=0)


def measure(problem: Problem, data: dd.DistilledData, networks: int) -> dict[str, float]:
    batch = problem.real.train.take(problem.real.train.draw(500, stream(0, "agreement-batch")))
    network: Network = problem.network
    losses, right, gradients = [], [], []

    def outer(last: Weights) -> tuple[torch.Tensor, Weights]:
        logits = network.logits(last, batch.images).detach()
        losses.append(float(F.cross_entropy(logits, batch.labels)))
        right.append(float((logits.argmax(1) == batch.labels).float().mean()))
        return batch_gradient(network, last, batch.images, batch.labels, 0)

    for number in range(networks):
        (start,) = problem.starts.sample(1, stream(0, "agreement", number))
        steps = with_noise(network, data.inner_steps(), stream(0, "agreement-noise", number))
        found = hypergradient(network, SGD(), start, steps, outer, ENGINE)
        gradients.append(torch.cat([found.images[batch].flatten() for batch in sorted(found.images)]))
    lengths = torch.stack([gradient.norm() for gradient in gradients])
    directions = torch.stack(gradients) / lengths[:, None]
    cosines = directions @ directions.T
    return {
        "loss": sum(losses) / networks,
        "accuracy": sum(right) / networks,
        "length": float(lengths.median()),
        "longest": float(lengths.max()),
        "cosine": float((cosines.sum() - networks) / (networks * (networks - 1))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?")
    parser.add_argument("--networks", type=int, default=12)
    parser.add_argument("--scheme", default="xavier")
    arguments = parser.parse_args()
    keep_freed_memory()
    kernels.build()
    device = torch.device("cpu")

    def problem_for(model: str, dataset: str, scheme: str, ipc: float) -> Problem:
        real = dd.load(dataset)
        return make_problem(
            real, model=model, weights="random-init", scheme=scheme, ipc=ipc, seed=0, device=device, engine=ENGINE
        )

    if arguments.path:
        data = dd.load_distilled(arguments.path)
        mine = data.provenance
        problem = problem_for(mine.model, mine.dataset, str(mine.weights.get("scheme", "xavier")), 1)
        print(json.dumps({"case": arguments.path, **rounded(measure(problem, data, arguments.networks))}))
        return
    problem = problem_for("lenet", "mnist", arguments.scheme, 10)
    for rates in ("constant", "falling"):
        for rate in (0.02, 0.05, 0.1, 0.15):
            method = dd.methods.DD(steps=10, epochs=3, images="real", learning_rate=rate, rates=rates)
            data, _ = method.init(problem, stream(0, "start"))
            case = f"{arguments.scheme}, {rates} {rate}"
            print(json.dumps({"case": case, **rounded(measure(problem, data, arguments.networks))}), flush=True)


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.3g}") for name, value in values.items()}


if __name__ == "__main__":
    main()

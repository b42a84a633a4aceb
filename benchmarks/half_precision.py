"""What keeping experts' weights in half precision changes in method `mtt`: its loss and its gradient.

    python benchmarks/half_precision.py [--dataset NAME] [--model NAME] [--epochs N] [--batch N] [--rate X]

Trains a few experts, keeps their weights in full, and takes outer steps of `mtt` from several epochs on, with the full
weights and with the rounded ones, which are all that a trajectory's file holds. Prints one JSON line for each start
epoch, with means over experts: the loss with full weights, by how much rounding changes it, and how far the gradient of
the images moves, relative to its length.
"""

import argparse
import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import datadistill as dd
from datadistill.distillation.problem import make_problem
from datadistill.engine import Weights, make_network
from datadistill.methods import Context, plan
from datadistill.models import create_model, draw_weights
from datadistill.pretraining.config import EXPERT_TRAINING
from datadistill.pretraining.make import make_trajectories
from datadistill.pretraining.pool import stacked_in_half
from datadistill.pretraining.trajectories import ExpertFile
from datadistill.training.fit import fit
from datadistill.utils.runtime import stream

EXPERTS, DISTANCE = 3, 2


@dataclass(frozen=True)
class Stretch(ExpertFile):
    """A part of a trajectory in memory, from one epoch to another."""

    start: Weights
    target: Weights

    def weights(self, epoch: int) -> Weights:
        return self.target if epoch else self.start


def rounded(weights: Weights) -> Weights:
    return {name: stack[0].float() for name, stack in stacked_in_half([weights]).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--model", default="ConvNetD1W16")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--out", default="runs/half-precision", help="where a small folder of trajectories is made")
    given = parser.parse_args()
    real = dd.load(given.dataset)
    training = replace(
        EXPERT_TRAINING, epochs=given.epochs, batch=given.batch, lr=given.rate, augment="crop_scale_rotate"
    )
    network = make_network(create_model(given.model, real))
    experts = []
    for number in range(EXPERTS):
        kept: list[Weights] = []
        start = draw_weights(network.module, "default", stream(number, "start"))
        fit(network, start, real.train, training, stream(number, "order"), keep=kept.append)
        experts.append(kept)
    short = replace(training, epochs=DISTANCE)
    frame = make_trajectories(
        real,
        Path(given.out) / f"{given.dataset}-{given.model}",
        model=given.model,
        experts=1,
        training=short,
        resume=True,
    )
    method = dd.methods.MTT(
        student_steps=10, expert_epochs=DISTANCE, max_start_epoch=0, learning_rate=0.01, augment="none"
    )
    last = given.epochs - DISTANCE
    for epoch in sorted({min(epoch, last) for epoch in (0, 5, 10, 20, last)}):
        lines = []
        for kept in experts:
            found = []
            for change in (lambda weights: weights, rounded):
                ends = change(kept[epoch]), change(kept[epoch + DISTANCE])
                part = Stretch(Path(), frame.experts[0].facts, frame.experts[0].shapes, *ends)
                problem = make_problem(
                    real,
                    model=given.model,
                    weights="random-init",
                    scheme="default",
                    ipc=1,
                    seed=0,
                    device=torch.device("cpu"),
                    trajectories=replace(frame, experts=(part,)),
                )
                asked = method.resolve(problem)
                start, state = asked.init(problem, stream(0, "start"))
                context = Context(problem, plan(asked, problem))
                found.append(asked.step(start, state, context, stream(0, "step")))
            (full, half), slopes = (float(one.loss) for one in found), [one.gradients["images"] for one in found]
            way = [float((kept[epoch + DISTANCE][name] - w).norm()) for name, w in kept[epoch].items()]
            whole = [float(w.norm()) for w in kept[epoch].values()]
            lines.append(
                {
                    "way": sum(x * x for x in way) ** 0.5 / sum(x * x for x in whole) ** 0.5,
                    "loss": full,
                    "change_of_loss": abs(half - full) / full,
                    "change_of_gradient": float((slopes[1] - slopes[0]).norm() / slopes[0].norm()),
                }
            )
        means = {name: statistics.fmean(line[name] for line in lines) for name in lines[0]}
        print(json.dumps({"epoch": epoch, **{name: float(f"{value:.3g}") for name, value in means.items()}}))


if __name__ == "__main__":
    main()

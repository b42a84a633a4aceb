"""Random real images, with the best learning rate that held-out data can find."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from datadistill.distilled import DistilledData
from datadistill.evaluation.accuracy import accuracy_along
from datadistill.inner import with_noise
from datadistill.methods import DD, Problem
from datadistill.registry import Registry
from datadistill.runtime import stream

RATES = tuple(round(0.001 * 10 ** (k / 4), 5) for k in range(13))
"""Rates that are tried: 0.001 to 1, four to a decade."""

_TUNING_NETWORKS = 8


def random_real(problem: Problem, steps: int, epochs: int, count: Callable[[], None] = lambda: None) -> DistilledData:
    """Random real images of every class, one constant rate for all steps.

    The rate is the one of `RATES` with the best mean accuracy on the held-out slice, over networks that are
    neither those of the evaluation nor those of a distilling run.

    Args:
        problem: dataset, network, initial weights, images per class, seed.
        steps: batches the images are cut into.
        epochs: how often they are walked.
        count: called after each of the `RATES` is tried.
    """
    method = DD(steps=steps, epochs=epochs, images="real")
    chosen = method.start(problem, stream(problem.seed, "random-real"))
    best, best_rate = -1.0, RATES[0]
    for rate in RATES:
        accuracy = _held_out_accuracy(_with_rate(chosen, rate), problem)
        count()
        if accuracy > best:
            best, best_rate = accuracy, rate
    data = _with_rate(chosen, best_rate)
    provenance = replace(
        data.provenance,
        method={
            "name": "random",
            "rates_tried": list(RATES),
            "networks": 1 if problem.starts.fixed is not None else _TUNING_NETWORKS,
        },
        scores=[{"split": "held_out", "accuracy": best}],
    )
    return replace(data, provenance=provenance)


def _with_rate(data: DistilledData, rate: float) -> DistilledData:
    assert data.learning_rates is not None
    return replace(data, learning_rates=torch.full_like(data.learning_rates, rate))


def _held_out_accuracy(data: DistilledData, problem: Problem) -> float:
    starts = problem.starts.sample(
        1 if problem.starts.fixed is not None else _TUNING_NETWORKS, stream(problem.seed, "tuning")
    )
    steps = with_noise(problem.network, data.inner_steps(), stream(problem.seed, "tuning-noise"))
    held_out = problem.real.held_out
    found = [accuracy_along(problem.network, start, steps, held_out)[-1].correct for start in starts]
    return sum(found) / len(found)


@dataclass(frozen=True)
class BaselineInfo:
    """A way of choosing images.

    Attributes:
        name: what people type.
        line: one line of explanation.
        choose: from a problem, steps, epochs and a function to call `pieces` times on the way.
        pieces: of about equal work.
    """

    name: str
    line: str
    choose: Callable[[Problem, int, int, Callable[[], None]], DistilledData]
    pieces: int


BASELINES = Registry(
    "baseline", (BaselineInfo("random", "random real images, rate tuned on held-out data", random_real, len(RATES)),)
)

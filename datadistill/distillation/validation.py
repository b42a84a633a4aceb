"""What the outer loop looks at: is it sound, and how good is it on held-out data?"""

import math
from dataclasses import replace

from datadistill.distillation.state import Best
from datadistill.distilled import DistilledData
from datadistill.engine import with_noise
from datadistill.engine.parallel import each_on_one_core
from datadistill.methods.base import Problem, Step
from datadistill.models import draw_weights
from datadistill.training.accuracy import Accuracy, accuracy_along, accuracy_of
from datadistill.training.dc_recipe import condensation_for
from datadistill.utils.runtime import stream

LOOK_NETWORKS = 4
CONDENSED_NETWORKS, CONDENSED_EPOCHS = 2, 100
"""At a look at data for protocol `dc`, at most: the whole protocol would take longer than the steps between looks.
Here too the rate falls at half."""

SLOWER = (1.0, 0.93, 0.86, 0.8)
"""Factors that all learning rates are tried with at the end of a run."""


def is_sound(distilled: DistilledData) -> bool:
    """Whether the data could be saved and read: finite images, finite positive rates."""
    rates = distilled.learning_rates
    positive = rates is None or bool((rates.isfinite() & (rates > 0)).all())
    return positive and all(bool(tensor.isfinite().all()) for tensor in (distilled.images, distilled.targets))


def is_finite(step: Step) -> bool:
    """Whether a method's answer can be used: a finite loss and finite gradients."""
    return all(bool(tensor.isfinite().all()) for tensor in (step.loss, *step.gradients.values()))


def held_out(
    problem: Problem, distilled: DistilledData, networks: int = LOOK_NETWORKS, purpose: str = "look"
) -> Accuracy:
    """Mean accuracy and loss of a few networks, the same ones at every look of the same purpose."""
    seen = _trained if distilled.is_condensed else _stepped
    found = seen(problem, distilled, networks, purpose)
    return Accuracy(*(sum(values) / len(found) for values in zip(*found, strict=True)))


def _stepped(problem: Problem, distilled: DistilledData, networks: int, purpose: str) -> list[Accuracy]:
    """By the data's own steps."""
    count = 1 if problem.starts.fixed is not None else networks
    steps, wanted = distilled.inner_steps(), problem.wanted(problem.real.held_out)
    steps = with_noise(problem.network, steps, stream(problem.seed, f"{purpose}-noise"))
    return [
        accuracy_along(problem.network, weights, steps, wanted)[-1]
        for weights in problem.starts.sample(count, stream(problem.seed, purpose))
    ]


def _trained(problem: Problem, distilled: DistilledData, networks: int, purpose: str) -> list[Accuracy]:
    """By protocol `dc`, but shorter."""
    settings = condensation_for(distilled)
    settings = replace(settings, epochs=min(settings.epochs, CONDENSED_EPOCHS))
    network, wanted = problem.network, problem.wanted(problem.real.held_out)

    def one(net: int) -> Accuracy:
        with network.alone:
            start = draw_weights(network.module, problem.scheme, stream(problem.seed, purpose, net))
        draws = stream(problem.seed, f"{purpose}-training", net)
        weights = settings.train(network, start, distilled.images, distilled.targets, draws)
        return accuracy_of(network, weights, wanted)

    return each_on_one_core(one, range(min(networks, CONDENSED_NETWORKS)), problem.device)


def slower(found: Best) -> list[Best]:
    """The same data with learning rates as they are and somewhat lower, not measured yet."""
    if "log_rates" not in found.values:
        return [found]
    return [
        replace(found, values={**found.values, "log_rates": found.values["log_rates"] + math.log(factor)})
        for factor in SLOWER
    ]

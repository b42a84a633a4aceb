"""Validation during a run: are the data sound, and how accurate are networks trained on them on held-out images?"""

import math
from dataclasses import replace

from datadistill.distillation.state import Best
from datadistill.distilled import DistilledData
from datadistill.engine.functional import Weights
from datadistill.engine.parallel import each_on_one_core
from datadistill.methods.base import Problem, Step
from datadistill.pretraining.initial_weights import Random
from datadistill.training.accuracy import Accuracy, accuracy_of
from datadistill.training.carried import recipe_of
from datadistill.training.fit import fit
from datadistill.training.recipe import TrainRecipe
from datadistill.utils import ranks
from datadistill.utils.runtime import stream

NETWORKS = 4
CONDENSED_NETWORKS, CONDENSED_EPOCHS = 2, 100
"""For data of protocol `dc` or another long recipe, at most: the whole would take longer than the steps between two
validations. Here too the rate falls at half."""

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


def held_out(problem: Problem, distilled: DistilledData, networks: int = NETWORKS, purpose: str = "look") -> Accuracy:
    """Mean accuracy and loss of a few networks, the same ones at every validation of the same purpose."""
    recipe = recipe_of(distilled)
    if recipe.takes_own_steps:
        found = _stepped(problem, distilled, recipe, networks, purpose)
    else:
        found = _trained(problem, distilled, recipe, networks, purpose)
    return Accuracy(*(sum(values) / len(found) for values in zip(*found, strict=True)))


def _stepped(
    problem: Problem, distilled: DistilledData, recipe: TrainRecipe, networks: int, purpose: str
) -> list[Accuracy]:
    """Validation by the data's own steps, with the same dropout for all networks."""
    network, wanted = problem.network, problem.with_targets(problem.real.held_out)
    count = 1 if problem.starts.fixed is not None else networks
    starts = problem.starts.sample(count, stream(problem.seed, purpose))

    def one(start: Weights) -> Accuracy:
        draws = stream(problem.seed, f"{purpose}-noise")
        return accuracy_of(network, fit(network, start, distilled, recipe, draws), wanted)

    return ranks.shared(lambda mine: [one(start) for start in mine], starts)


def _trained(
    problem: Problem, distilled: DistilledData, recipe: TrainRecipe, networks: int, purpose: str
) -> list[Accuracy]:
    """Validation by any other recipe, but shorter; for protocol `dc` on fresh networks."""
    recipe = replace(recipe, epochs=min(recipe.epochs, CONDENSED_EPOCHS))
    network, wanted = problem.network, problem.with_targets(problem.real.held_out)
    starts = Random(network, problem.scheme) if distilled.is_condensed else problem.starts
    count = 1 if starts.fixed is not None else min(networks, CONDENSED_NETWORKS)

    def one(net: int) -> Accuracy:
        with network.alone:
            (start,) = starts.sample(1, stream(problem.seed, purpose, net))
        draws = stream(problem.seed, f"{purpose}-training", net)
        return accuracy_of(network, fit(network, start, distilled, recipe, draws), wanted)

    return each_on_one_core(one, range(count), problem.device)


def slower(found: Best) -> list[Best]:
    """Candidates with learning rates as they are and somewhat lower, not measured yet."""
    if "log_rates" not in found.values:
        return [found]
    return [
        replace(found, values={**found.values, "log_rates": found.values["log_rates"] + math.log(factor)})
        for factor in SLOWER
    ]

"""What the outer loop looks at: is it sound, and how good is it on held-out data?"""

from datadistill.distilled import DistilledData
from datadistill.evaluation.accuracy import Accuracy, accuracy_along
from datadistill.inner import with_noise
from datadistill.methods.base import Outcome, Problem
from datadistill.runtime import stream

LOOK_NETWORKS = 4


def is_sound(distilled: DistilledData) -> bool:
    """Whether the data could be saved and read: finite images, finite positive rates."""
    rates = distilled.learning_rates
    positive = rates is None or bool((rates.isfinite() & (rates > 0)).all())
    return positive and bool(distilled.images.isfinite().all())


def is_finite(outcome: Outcome) -> bool:
    """Whether a method's answer can be used: a finite loss and finite gradients."""
    rates = outcome.gradients.learning_rates
    tensors = [outcome.loss, outcome.gradients.images, *([] if rates is None else [rates])]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def held_out(problem: Problem, distilled: DistilledData) -> Accuracy:
    """Mean accuracy and loss of a few networks, the same ones at every look."""
    count = 1 if problem.starts.fixed is not None else LOOK_NETWORKS
    steps = distilled.inner_steps()
    steps = with_noise(problem.network, steps, stream(problem.seed, "look-noise"))
    seen = [
        accuracy_along(problem.network, weights, steps, problem.real.held_out)[-1]
        for weights in problem.starts.sample(count, stream(problem.seed, "look"))
    ]
    return Accuracy(sum(s.correct for s in seen) / count, sum(s.loss for s in seen) / count)

"""Accuracy of networks before and after training by a recipe, several at a time."""

import threading
from collections.abc import Callable

from datadistill.engine.functional import Network, Weights
from datadistill.engine.parallel import each_on_one_core
from datadistill.evaluation.config import Trial
from datadistill.training.accuracy import accuracy_of
from datadistill.training.fit import fit
from datadistill.training.recipe import TrainRecipe
from datadistill.utils import ranks
from datadistill.utils.interrupts import Stopped, StopRequest
from datadistill.utils.runtime import stream


def accuracies_of(
    trial: Trial, network: Network, recipe: TrainRecipe, draw: Callable[[int], Weights], nets: int
) -> list[list[float]]:
    """Accuracy before and after training, for each network.

    On a CPU each has a core of its own, and generators of its own, so that what it reaches depends on no other network.

    Args:
        trial: says on what networks are trained and tested.
        network: what is trained.
        recipe: how.
        draw: where a network starts, by number; called while nobody else calls the module.
        nets: how many.
    """
    distilled, lock = trial.distilled.to(trial.device), threading.Lock()
    with StopRequest() as stop:

        def count() -> None:
            with lock:
                trial.count()
            if requested := ranks.stopped(stop.requested):  # ends every thread; otherwise all would finish first
                raise Stopped(requested)

        def one(net: int) -> list[float]:
            with network.alone:
                start = draw(net)
            draws = stream(trial.config.seed, "evaluation-training", net)
            before = accuracy_of(network, start, trial.judged_on)
            last = fit(network, start, distilled, recipe, draws, count)
            return [before.correct, accuracy_of(network, last, trial.judged_on).correct]

        return each_on_one_core(one, range(nets), trial.device)

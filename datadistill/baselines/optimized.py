"""`optimized`: the best of many random sets, by accuracy on held-out training images.

The "optimized" baseline of Wang et al., "Dataset Distillation", arXiv 1811.10959 (2018), which keeps the best 20 % by
accuracy on training batches; here it is the held-out slice of the training split.
"""

from dataclasses import replace
from typing import Any

from datadistill.baselines.base import Rates, held_out_accuracy, held_out_score, tune, tuning_networks
from datadistill.baselines.random_real import draw
from datadistill.distilled import DistilledData
from datadistill.methods import Problem
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.errors import RequestError
from datadistill.utils.progress import Bar, quiet

SETS, KEPT = 50, 0.2


def optimized(
    problem: Problem,
    steps: int,
    epochs: int,
    sets: int = SETS,
    bar: Bar = quiet,
    recipe: TrainRecipe | None = None,
) -> list[DistilledData]:
    """The best fifth of the sets that `random` draws, best first.

    They are compared with the rates tuned for the first of them, on the networks that rates are tuned on; those that
    are kept then get rates of their own.

    Args:
        problem: dataset, network, initial weights, images per class, seed.
        steps: batches the images are cut into.
        epochs: how often they are walked.
        sets: how many are drawn.
        bar: shows progress.
        recipe: must be None.

    Raises:
        RequestError: it was asked for protocol `dc`.
    """
    if recipe is not None:
        raise RequestError(
            f"baseline optimized trains networks on {sets} sets to choose among them, which takes protocol dc too "
            "long: use another one, such as random"
        )
    drawn = [draw(problem, steps, epochs, "optimized", number) for number in range(sets)]
    method = tune(drawn[0], problem, bar).provenance.method
    rates = Rates(method["schedule"], method["rate"])
    starts, found = tuning_networks(problem), list[float]()
    with bar("comparing sets", sets) as count:
        for data in drawn:
            found.append(held_out_accuracy(rates.put(data), problem, starts))
            count()
    order = sorted(range(sets), key=lambda number: found[number], reverse=True)[: max(1, round(KEPT * sets))]
    facts = {"drawn": sets, "kept": len(order), "held_out_of_all": sum(found) / sets}
    kept = [tune(_noted(drawn[number], facts), problem, bar, near=rates) for number in order]
    return sorted(kept, key=held_out_score, reverse=True)


def _noted(data: DistilledData, facts: dict[str, Any]) -> DistilledData:
    mine = data.provenance
    return replace(data, provenance=replace(mine, method={**mine.method, **facts}))

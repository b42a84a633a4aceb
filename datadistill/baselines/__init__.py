"""Baselines: distilled data that is chosen instead of optimised, judged like any other."""

from collections.abc import Callable
from dataclasses import dataclass

from datadistill.baselines.average import average
from datadistill.baselines.full import full_dataset
from datadistill.baselines.herding import herding
from datadistill.baselines.kcenter import kcenter
from datadistill.baselines.kmeans import kmeans
from datadistill.baselines.optimized import SETS, optimized
from datadistill.baselines.random_real import random_real
from datadistill.distilled import DistilledData
from datadistill.methods import Problem
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.progress import Bar
from datadistill.utils.registry import Registry

__all__ = [
    "BASELINES",
    "BaselineInfo",
    "average",
    "full_dataset",
    "herding",
    "kcenter",
    "kmeans",
    "optimized",
    "random_real",
]


@dataclass(frozen=True)
class BaselineInfo:
    """A way of choosing images.

    Attributes:
        name: what people type.
        line: one line of explanation.
        choose: from a problem, steps, epochs, a number of sets, what shows progress, and protocol `dc` if
            it is for that; the best or first set first.
        sets: how many are made, or drawn from, unless somebody says otherwise.
    """

    name: str
    line: str
    choose: Callable[[Problem, int, int, int, Bar, TrainRecipe | None], list[DistilledData]]
    sets: int = 1


BASELINES = Registry(
    "baseline",
    (
        BaselineInfo("random", "random real images", random_real),
        BaselineInfo("optimized", "the best fifth of many random sets, by held-out accuracy", optimized, SETS),
        BaselineInfo("kmeans", "cluster centres of each class", kmeans),
        BaselineInfo("average", "the mean image of each class, used at every step", average),
        BaselineInfo("herding", "real images whose mean feature follows their class's", herding),
        BaselineInfo("kcenter", "real images that no other of their class is far from in feature space", kcenter),
    ),
)

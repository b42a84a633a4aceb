"""Baselines: distilled data that is chosen instead of optimised, judged like any other."""

from datadistill.baselines.average import Average
from datadistill.baselines.base import Baseline
from datadistill.baselines.full import full_dataset
from datadistill.baselines.herding import Herding
from datadistill.baselines.kcenter import KCenter
from datadistill.baselines.kmeans import KMeans
from datadistill.baselines.optimized import Optimized
from datadistill.baselines.random_real import RandomReal
from datadistill.utils.registry import Registry

__all__ = [
    "BASELINES",
    "Average",
    "Baseline",
    "Herding",
    "KCenter",
    "KMeans",
    "Optimized",
    "RandomReal",
    "full_dataset",
]

BASELINES = Registry[type[Baseline]]("baseline", (RandomReal, Optimized, KMeans, Average, Herding, KCenter))

"""The engine: training on distilled data, and its exact derivative. Knows no method."""

from datadistill.inner.functional import Network, Weights
from datadistill.inner.hypergradient import STORAGES, Hypergradient, hypergradient
from datadistill.inner.optimizers import SGD, Adam, Optimizer, State
from datadistill.inner.unroll import InnerStep, walk

__all__ = [
    "SGD",
    "STORAGES",
    "Adam",
    "Hypergradient",
    "InnerStep",
    "Network",
    "Optimizer",
    "State",
    "Weights",
    "hypergradient",
    "walk",
]

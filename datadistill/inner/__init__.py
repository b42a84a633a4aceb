"""The engine: training on distilled data, and its exact derivative. Knows no method."""

from datadistill.inner.captured import outer_step
from datadistill.inner.engine import Engine
from datadistill.inner.functional import Network, Weights, make_network
from datadistill.inner.hypergradient import Hypergradient, hypergradient
from datadistill.inner.optimizers import SGD, Adam, Optimizer, State
from datadistill.inner.plan import Demand, Prediction, predict, settle
from datadistill.inner.unroll import InnerStep, walk, with_noise

__all__ = [
    "SGD",
    "Adam",
    "Demand",
    "Engine",
    "Hypergradient",
    "InnerStep",
    "Network",
    "Optimizer",
    "Prediction",
    "State",
    "Weights",
    "hypergradient",
    "make_network",
    "outer_step",
    "predict",
    "settle",
    "walk",
    "with_noise",
]

"""The engine: training on distilled data, and its exact derivative. Knows no method."""

from datadistill.engine.config import Engine
from datadistill.engine.cuda_graph import OuterLoss, outer_step
from datadistill.engine.functional import Network, Weights, make_network
from datadistill.engine.hypergradient import Hypergradient, hypergradient
from datadistill.engine.losses import Loss
from datadistill.engine.networks import network_for
from datadistill.engine.optimizers import SGD, Adam, AdamW, Optimizer, State
from datadistill.engine.planner import Prediction, Workload, predict, settle
from datadistill.engine.unroll import InnerStep, walk, with_noise

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Engine",
    "Hypergradient",
    "InnerStep",
    "Loss",
    "Network",
    "Optimizer",
    "OuterLoss",
    "Prediction",
    "State",
    "Weights",
    "Workload",
    "hypergradient",
    "make_network",
    "network_for",
    "outer_step",
    "predict",
    "settle",
    "walk",
    "with_noise",
]

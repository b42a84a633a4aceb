"""Selection by features: the inputs of the last linear layer of a network trained on the training split."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from datadistill.baselines.base import Baseline, by_class
from datadistill.data.real import Split
from datadistill.distilled import DistilledData
from datadistill.engine.features import headless
from datadistill.engine.functional import Network, Weights
from datadistill.methods import Problem
from datadistill.models import draw_weights
from datadistill.training.accuracy import accuracy_of
from datadistill.training.fit import fit, walk_of
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.progress import Bar
from datadistill.utils.runtime import stream

_LEAST_STEPS, _BATCH = 1000, 500


@dataclass(frozen=True, eq=False)
class Features:
    """Features of the training split.

    Attributes:
        values: one row per image.
        accuracy: of the network they come from, on the held-out slice.
    """

    values: Float[Tensor, "n d"]
    accuracy: float


@dataclass(frozen=True)
class ByFeatures(Baseline):
    """Sets of real images, each chosen by the features of another network."""

    @staticmethod
    def select(features: Float[Tensor, "n d"], count: int) -> Int64[Tensor, "{count}"]:
        """Indices of `count` rows, without repetition, in the order in which they are chosen."""
        raise NotImplementedError

    def chosen(self, number: int, problem: Problem) -> DistilledData:
        ipc, split = problem.real.check_ipc(problem.ipc), problem.real.train
        features = make_features(problem, number, self.bar)

        def pick(label: int) -> Float[Tensor, "ipc c h w"]:
            members = split.of_class(label)
            mine = features.values[members.to(features.values.device)]
            return split.take(members[self.select(mine, ipc[label])]).images

        images = by_class(problem, pick)
        return self.assembled(problem, images, set=number, feature_network_held_out=features.accuracy)


def make_features(problem: Problem, number: int, bar: Bar) -> Features:
    """Features of the training split by the problem's network, trained on it; they are kept with the problem.

    Networks of other numbers start elsewhere.

    Raises:
        RequestError: the network has no linear layer.
    """
    key = ("features", number)
    if key in problem.cache:
        found: Features = problem.cache[key]
        return found
    network, real = problem.network, problem.real
    headless(network, real.train.images[:1])  # refused before a network is trained
    start = draw_weights(network.module, problem.scheme, stream(problem.seed, "features", number))
    training = TrainRecipe()
    walk = walk_of(training, real.train)
    training = replace(training, epochs=max(training.epochs, math.ceil(_LEAST_STEPS / walk)))
    generator = stream(problem.seed, "features-order", number)
    with bar("training a network for features", training.epochs) as count:
        weights = fit(network, start, real.train, training, generator, count)
    made = Features(features_of(network, weights, real.train), accuracy_of(network, weights, real.held_out).correct)
    problem.cache[key] = made
    return made


@torch.no_grad()
def features_of(network: Network, weights: Weights, split: Split) -> Float[Tensor, "n d"]:
    """Features of every image: the inputs of the linear layer that is called last.

    Raises:
        RequestError: there is no linear layer.
    """
    body = headless(network.plain, split.images[:1])
    return torch.cat([body.logits(weights, images) for images in torch.split(split.images, _BATCH)])

"""Augmentation for images of which nothing is known: the one with which a few real ones teach best.

What can be done to an image without making another thing of it is knowledge that a handful of images cannot have
themselves: a digit that is turned a little, sheared and bent is the same digit, a mirrored one is not. So candidates
are tried on random real images, as many as are to be distilled: fresh networks are trained on them with each, by
protocol `dc`, and judged on held-out images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datadistill.data.real import RealData
from datadistill.engine.functional import Network
from datadistill.engine.parallel import map_here
from datadistill.methods.dc import DSA_STRATEGY
from datadistill.models.init import draw_weights
from datadistill.training.accuracy import accuracy_of
from datadistill.training.fit import fit
from datadistill.training.recipe import DC, EPOCHS_AUGMENTED, TrainRecipe
from datadistill.utils.runtime import stream

GREY = (
    DSA_STRATEGY.replace("_flip", ""),
    "warp10",
    "warp10_warp10+cutout",
    "warp20",
    "warp20_warp20+cutout",
)
COLOUR = (
    DSA_STRATEGY,
    "flip+warp10+color",
    "flip+warp10+color_flip+warp10+cutout",
    "flip+crop+color_flip+scale+rotate+color_flip+crop+cutout",
)
"""What is tried; the first is what the field takes. Grey images, often digits or letters, are not mirrored."""

NETS = 2
"""Networks for each candidate, each on other images."""

_JUDGED_ON = 2000


@dataclass(frozen=True)
class Tried:
    """Candidates and how well real images taught with them.

    Attributes:
        accuracies: held-out, mean over `NETS` networks, by candidate.
        epochs: for which each was trained.
    """

    accuracies: dict[str, float]
    epochs: int

    @property
    def best(self) -> str:
        """The candidate with the highest accuracy."""
        return max(self.accuracies, key=lambda name: self.accuracies[name])


def candidates(real: RealData) -> tuple[str, ...]:
    """What is tried for a dataset."""
    return COLOUR if real.train.images.shape[1] == 3 else GREY


def epochs_within(seconds: float, each: float, real: RealData, ipc: Sequence[int]) -> int:
    """Epochs for which each network is trained, if all candidates are to take so long; the protocol's at most.

    Args:
        seconds: for all.
        each: seconds for an image in an epoch, on all cores.
        real: the dataset.
        ipc: images of each class.
    """
    return min(EPOCHS_AUGMENTED, int(seconds / (each * sum(ipc) * NETS * len(candidates(real)))))


def try_augmentations(
    network: Network,
    real: RealData,
    ipc: Sequence[int],
    *,
    epochs: int,
    scheme: str = "default",
    seed: int = 0,
    count: Callable[[], object] = lambda: None,
) -> Tried:
    """Held-out accuracies of networks that are trained on random real images, by the augmentation in training.

    All candidates have the same images and the same initial weights. Every core trains a network; other ranks have no
    share in it.

    Args:
        network: that is trained.
        real: the dataset, on the network's device.
        ipc: images of each class.
        epochs: of protocol `dc`.
        scheme: of initial weights.
        seed: of images, weights and training.
        count: called after each of `NETS` networks of each candidate.
    """
    among = torch.randperm(len(real.held_out), generator=stream(seed, "augmentation-judged-on"))
    few = real.held_out.take(among[:_JUDGED_ON])
    sets = [real.train.take(_chosen(real, ipc, stream(seed, "augmentation", net))) for net in range(NETS)]
    recipes = [replace(DC, epochs=epochs, augment=name) for name in candidates(real)]

    def reached(pair: tuple[TrainRecipe, int]) -> float:
        recipe, net = pair
        with network.alone:
            start = draw_weights(network.module, scheme, stream(seed, "augmentation-weights", net))
        last = fit(network, start, sets[net], recipe, stream(seed, "augmentation-training", net))
        correct = accuracy_of(network, last, few).correct
        count()
        return correct

    pairs = [(recipe, net) for recipe in recipes for net in range(NETS)]
    found = torch.tensor(map_here(reached, pairs, real.train.images.device)).view(-1, NETS).mean(1)
    return Tried(dict(zip(candidates(real), found.tolist(), strict=True)), epochs)


def _chosen(real: RealData, ipc: Sequence[int], generator: torch.Generator) -> Tensor:
    """Indices of random images of every class."""
    members = [real.train.of_class(label) for label in range(real.num_classes)]
    return torch.cat(
        [mine[torch.randperm(len(mine), generator=generator)[:count]] for mine, count in zip(members, ipc, strict=True)]
    )

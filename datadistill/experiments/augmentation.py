"""Augmentation in training on a distilled set: the one with which it teaches best, held out.

What can be done to an image without making another thing of it is knowledge that a handful of images cannot have
themselves: a digit that is turned a little, sheared and bent is the same digit, a mirrored one is not. So candidates
are tried on the set itself: fresh networks are trained on it with each, by protocol `dc`, and judged on held-out
images. Real images, or cluster centres, in the place of the set would not tell: they bear other things.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from datadistill.data.real import RealData
from datadistill.distilled import DistilledData
from datadistill.engine.functional import Network
from datadistill.engine.parallel import each_on_one_core, map_here
from datadistill.methods.dc import DSA_STRATEGY
from datadistill.models.init import draw_weights
from datadistill.training.accuracy import accuracy_of
from datadistill.training.carried import dc_recipe
from datadistill.training.fit import fit
from datadistill.training.recipe import DC, EPOCHS_AUGMENTED, TrainRecipe
from datadistill.utils import ranks
from datadistill.utils.interrupts import Stopped, StopRequest
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
"""Networks for each candidate."""

_JUDGED_ON, _TIMED = 2000, 6
"""Held-out images, and epochs by which the others are timed."""


@dataclass(frozen=True)
class Tried:
    """Candidates and how well a set taught with them, and with the best of them for longer.

    Attributes:
        accuracies: held-out, mean over `NETS` networks, by candidate.
        epochs: of those networks.
        longer: the same, with the best candidate for as many epochs as the protocol has; None where those are no more.
    """

    accuracies: dict[str, float]
    epochs: int = EPOCHS_AUGMENTED
    longer: float | None = None

    @property
    def best(self) -> str:
        """The candidate with the highest accuracy."""
        return max(self.accuracies, key=lambda name: self.accuracies[name])

    @property
    def correct(self) -> float:
        """The accuracy that the best reached, for as long as is best for it."""
        return max(self.accuracies[self.best], self.longer or 0.0)

    @property
    def best_epochs(self) -> int:
        """For how long networks are best trained: what was tried, or all of the protocol's epochs."""
        return self.epochs if self.longer is None or self.longer < self.correct else EPOCHS_AUGMENTED


def candidates(real: RealData) -> tuple[str, ...]:
    """What is tried for a dataset."""
    return COLOUR if real.train.images.shape[1] == 3 else GREY


def epochs_within(seconds: float, network: Network, real: RealData, images: int) -> int:
    """Epochs for which each network is trained, if all candidates, and the best for longer, are to take so long.

    They are the protocol's at most, and may be negative.

    A few epochs are timed on real images, with as many networks at once as there are cores. Other ranks have no share.

    Args:
        seconds: for all.
        network: that is trained, on its device.
        real: the dataset, there too.
        images: how many are trained on.
    """
    device = real.train.images.device
    few = real.train.take(torch.arange(images))
    judged_on = real.held_out.take(torch.arange(len(real.held_out))[:_JUDGED_ON])
    at_once = torch.get_num_threads() if device.type == "cpu" else 1
    start = draw_weights(network.module, "default", stream(0, "timed"))

    def clock(function: Callable[[int], object]) -> float:
        began = time.perf_counter()
        map_here(function, range(at_once), device)
        return (time.perf_counter() - began) / at_once

    def train(epochs: int) -> Callable[[int], object]:
        recipe = replace(DC, epochs=epochs, augment=candidates(real)[-1])
        return lambda net: fit(network, start, few, recipe, stream(net, "timed"))

    clock(train(1))
    short, long = clock(train(1)), clock(train(1 + _TIMED))
    judging = clock(lambda net: accuracy_of(network, start, judged_on))
    count, epoch = len(candidates(real)), max(long - short, 1e-9) / _TIMED
    epochs = (seconds / NETS - (count + 1) * judging) / epoch
    return min(EPOCHS_AUGMENTED, int((epochs - EPOCHS_AUGMENTED) / count))


def recipes_of(distilled: DistilledData, names: Iterable[str], epochs: int) -> dict[str, TrainRecipe]:
    """Recipes of protocol `dc` for some data, by their augmentations."""
    return {name: dc_recipe(distilled, epochs=epochs, augment=name) for name in names}


def try_recipes(
    network: Network,
    distilled: DistilledData,
    real: RealData,
    recipes: Mapping[str, TrainRecipe],
    *,
    seed: int = 0,
    count: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Held-out accuracies of networks that are trained on a set, by the recipe of training, means over `NETS`.

    All candidates have the same initial weights. Every core trains a network, and every rank has its share of them.

    Args:
        network: that is trained.
        distilled: that it is trained on; on the network's device.
        real: the dataset.
        recipes: by name.
        seed: of weights and training.
        count: called after each of `NETS` networks of each candidate.

    Raises:
        Stopped: a signal came.
    """
    among = torch.randperm(len(real.held_out), generator=stream(seed, "augmentation-judged-on"))
    few = real.held_out.take(among[:_JUDGED_ON])
    scheme = str(distilled.provenance.weights.get("scheme", "default"))
    lock = threading.Lock()
    pairs = [(name, net) for name in recipes for net in range(NETS)]
    with StopRequest() as stop:

        def check() -> None:
            if requested := ranks.stopped(stop.requested):  # ends every thread; otherwise all would finish first
                raise Stopped(requested)

        def reached(pair: tuple[str, int]) -> float:
            name, net = pair
            with network.alone:
                start = draw_weights(network.module, scheme, stream(seed, "augmentation-weights", net))
            last = fit(network, start, distilled, recipes[name], stream(seed, "augmentation-training", net), check)
            with lock:
                count()
            return accuracy_of(network, last, few).correct

        found = each_on_one_core(reached, pairs, distilled.images.device)
    means = [sum(found[at : at + NETS]) / NETS for at in range(0, len(found), NETS)]
    return dict(zip(recipes, means, strict=True))

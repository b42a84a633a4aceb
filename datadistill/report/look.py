"""Distilled data beside the real dataset: nearest real images, and confusion matrix."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from datadistill.data.real import RealData
from datadistill.distilled import DistilledData
from datadistill.engine import network_for
from datadistill.evaluation.nearest import nearest_of
from datadistill.models.gate import Named
from datadistill.training.accuracy import confusion_of
from datadistill.training.carried import recipe_of
from datadistill.training.fit import fit
from datadistill.utils.runtime import stream

_MOST_CLASSES = 100
"""Of which a table of confusions can be read."""


@dataclass(frozen=True, eq=False)
class Look:
    """Distilled data beside the real dataset.

    Attributes:
        nearest: the pixels of the training image that is nearest to each distilled one, as networks are fed them.
        labels: their classes, by name.
        confusion: share of each class's test images (rows) taken for each class (columns), by the one network that the
            images were made for, by steps of their own; None where there is none such, or too many classes.
    """

    nearest: Float[Tensor, "n c h w"]
    labels: list[str]
    confusion: list[list[float]] | None


def look_at(distilled: DistilledData, real: RealData) -> Look:
    """Nearest training images (Euclidean), and the confusion matrix of the network whose weights a file holds.

    Raises:
        RequestError: the data does not fit the dataset.
    """
    distilled.check_matches(real)
    found = nearest_of(real.train.images, distilled.images)
    pixels = distilled.provenance.normalization.invert(real.train.images[found])
    names = distilled.provenance.classes
    return Look(
        pixels.cpu(), [names[label] for label in real.train.labels[found].tolist()], _confusion(distilled, real)
    )


def _confusion(distilled: DistilledData, real: RealData) -> list[list[float]] | None:
    mine, recipe = distilled.provenance, recipe_of(distilled)
    # Nothing is loaded for a picture because a file names it.
    named = Named("network", mine.model, "--model").reach()
    if distilled.initial_weights is None or named or not recipe.takes_own_steps:
        return None
    if len(mine.classes) > _MOST_CLASSES:
        return None
    network = network_for(mine.model, real, distilled.images.device, mine.batch_norm)
    network = network.holding(distilled.initial_weights)
    weights = fit(network, distilled.initial_weights, distilled, recipe, stream(0, "report"))
    found: list[list[float]] = confusion_of(network, weights, real.test).tolist()
    return found

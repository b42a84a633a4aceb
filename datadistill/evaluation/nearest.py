"""Protocol `nearest`: no network is trained; a test image has the class of the nearest distilled image."""

import time

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from datadistill.evaluation.config import Trial
from datadistill.evaluation.scores import Score, summarize
from datadistill.utils.errors import RequestError

_BATCH = 500


def judge_nearest(trial: Trial) -> Score:
    """The score of a nearest-neighbour classifier (k = 1, Euclidean) on what networks are fed.

    Learning rates are not used; of soft labels, the class with the largest one counts.

    Raises:
        RequestError: a network or its initial weights were asked for.
    """
    if trial.config.scheme is not None:
        raise RequestError("protocol nearest trains no network: leave out the scheme")
    if trial.config.model is not None or trial.config.weights != "own":
        raise RequestError("protocol nearest trains no network: leave out the model and the kind of weights")
    began, split = time.perf_counter(), trial.judged_on
    distilled = trial.distilled.to(trial.device)
    soft = distilled.soft_labels
    classes = distilled.labels if soft is None else soft.argmax(1)
    found = nearest_labels(distilled.images, classes, split.images)
    correct = int((found == split.labels).sum()) / len(split)
    trial.count()
    return Score(
        model="none (nearest neighbour)",
        weights="none",
        protocol="nearest",
        nets=1,
        split=trial.config.split,
        images=len(split),
        accuracy=summarize([correct], len(split)),
        before=None,
        by_step=(),
        seconds=time.perf_counter() - began,
        device=str(trial.device),
    )


def nearest_labels(
    known: Float[Tensor, "n c h w"], labels: Int64[Tensor, "n"], images: Float[Tensor, "m c h w"]
) -> Int64[Tensor, "m"]:
    """The label of the known image that is nearest to each image; the first of equally near ones."""
    return labels[nearest_of(known, images)]


def nearest_of(known: Float[Tensor, "n c h w"], images: Float[Tensor, "m c h w"]) -> Int64[Tensor, "m"]:
    """Index of the known image nearest to each image; the first of equally near ones."""
    points = known.flatten(1)
    # Through matrix products distances of near points lose most of their digits.
    parts = [
        torch.cdist(part.flatten(1), points, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        for part in torch.split(images, _BATCH)
    ]
    return torch.cat(parts)

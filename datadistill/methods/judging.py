"""Distilled data without learning rates of its own: networks are trained on it by the field's protocol."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from datadistill.data.augment import parse_augmentation
from datadistill.distilled import DistilledData
from datadistill.methods.base import Problem
from datadistill.methods.initial_images import first_images
from datadistill.training.carried import inner_of
from datadistill.training.recipe import DC, EPOCHS_AUGMENTED


def judged_by_protocol(
    problem: Problem,
    kind: str,
    generator: torch.Generator,
    method: str,
    options: dict[str, Any],
    augment: str,
    epochs: int = 0,
) -> DistilledData:
    """First images of the classes `problem.labels`, to be judged as in Zhao et al. 2021.

    Args:
        problem: what is distilled.
        kind: of images, as for `first_images`.
        generator: on the CPU.
        method: its name.
        options: its hyper-parameters.
        augment: how images are changed while a network is trained on them.
        epochs: for how long it is; 0: the field's.

    Raises:
        RequestError: a class would have no image of its own, or has fewer than are asked for.
    """
    problem.real.check_ipc(problem.ipc)
    images = first_images(kind, problem, generator).to(problem.device)
    return for_protocol(problem, images, problem.labels.to(problem.device), method, options, augment, epochs)


def training_augmentation(asked: str, augment: str) -> str:
    """The augmentation that networks are trained with on a result: `augment`, where `same` is asked for.

    Raises:
        RequestError: there is no such augmentation.
    """
    found = augment if asked.strip().lower() == "same" else asked
    parse_augmentation(found)
    return found


def with_soft_labels(data: DistilledData) -> DistilledData:
    """The same data with soft labels that start as the hard ones: one-hot."""
    soft = F.one_hot(data.labels, len(data.provenance.classes))
    return replace(data, soft_labels=soft.to(data.images))


def for_protocol(
    problem: Problem,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, "n"],
    method: str,
    options: dict[str, Any],
    augment: str,
    epochs: int = 0,
) -> DistilledData:
    """Some images, to be judged as in Zhao et al. 2021; arguments as for `judged_by_protocol`."""
    epochs = epochs or (EPOCHS_AUGMENTED if parse_augmentation(augment) else DC.epochs)
    inner = inner_of(replace(DC, epochs=epochs, augment=augment))
    return DistilledData(
        images=images,
        labels=labels,
        batches=torch.arange(len(labels), device=labels.device).view(1, -1),
        learning_rates=None,
        provenance=problem.provenance(method, options, inner),
        initial_weights=problem.starts.fixed,
    )

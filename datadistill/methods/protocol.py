"""Distilled data without learning rates of its own: networks are trained on it by the field's protocol."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.augment import parse_augmentation
from datadistill.condensation import EPOCHS, EPOCHS_AUGMENTED, Condensation
from datadistill.distilled import DistilledData
from datadistill.methods.base import Problem


def judged_by_protocol(
    problem: Problem, images: Float[Tensor, "n c h w"], method: str, options: dict[str, Any], augment: str
) -> DistilledData:
    """Images of the classes `problem.labels`, to be judged as in Zhao et al. 2021.

    Args:
        problem: what is distilled.
        images: on any device.
        method: its name.
        options: its hyper-parameters.
        augment: how images are changed while a network is trained on them.

    Raises:
        RequestError: a class would have no image of its own.
    """
    problem.real.check_ipc(problem.ipc)
    epochs = EPOCHS_AUGMENTED if parse_augmentation(augment) else EPOCHS
    inner = Condensation(epochs=epochs, augment=augment).as_inner()
    return DistilledData(
        images=images.to(problem.device),
        labels=problem.labels.to(problem.device),
        batches=torch.arange(problem.count, device=problem.device).view(1, -1),
        learning_rates=None,
        provenance=problem.provenance(method, options, inner),
        initial_weights=problem.starts.fixed,
    )

"""Differentiable augmentation: parameters are drawn from a generator, then applied to every image."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from datadistill.errors import RequestError
from datadistill.registry import Registry

NONE = "none"

Matrices = Float[Tensor, "n 3 3"]


@dataclass(frozen=True)
class AugmentationInfo:
    """A way in which images are moved about.

    Attributes:
        name: what people type.
        line: one line of explanation.
        draw: matrices that take a point of the new image to one of the old, both from -1 to 1.
    """

    name: str
    line: str
    draw: Callable[[int, torch.Generator], Matrices]


def _uniform(count: int, generator: torch.Generator) -> Float[Tensor, "{count}"]:
    """From -1 to 1."""
    return 2 * torch.rand(count, generator=generator) - 1


def _matrices(count: int, entries: dict[tuple[int, int], Tensor]) -> Matrices:
    found = torch.eye(3).repeat(count, 1, 1)
    for (row, column), values in entries.items():
        found[:, row, column] = values
    return found


def _shift(count: int, generator: torch.Generator) -> Matrices:
    # An eighth of the edge, which is 2 units long.
    return _matrices(count, {(0, 2): _uniform(count, generator) / 4, (1, 2): _uniform(count, generator) / 4})


def _scale(count: int, generator: torch.Generator) -> Matrices:
    factors = [torch.exp(math.log(1.2) * _uniform(count, generator)) for _ in range(2)]
    return _matrices(count, {(0, 0): factors[0], (1, 1): factors[1]})


def _rotate(count: int, generator: torch.Generator) -> Matrices:
    angle = math.radians(15) * _uniform(count, generator)
    return _matrices(count, {(0, 0): angle.cos(), (0, 1): -angle.sin(), (1, 0): angle.sin(), (1, 1): angle.cos()})


def _flip(count: int, generator: torch.Generator) -> Matrices:
    return _matrices(count, {(0, 0): _uniform(count, generator).sign()})


AUGMENTATIONS = Registry(
    "augmentation",
    (
        AugmentationInfo("shift", "up to an eighth of the edge in both directions", _shift),
        AugmentationInfo("scale", "by up to 1.2 in both directions, each by itself", _scale),
        AugmentationInfo("rotate", "by up to 15 degrees", _rotate),
        AugmentationInfo("flip", "left to right, every other image", _flip),
    ),
)


def parse_augmentation(text: str) -> tuple[AugmentationInfo, ...]:
    """The parts of `shift_rotate`, for instance; `none` has none.

    Raises:
        RequestError: a part is unknown, or there twice.
    """
    names = [] if text.strip().lower() == NONE else text.split("_")
    parts = tuple(AUGMENTATIONS.get(name) for name in names)
    if len(set(parts)) < len(parts):
        raise RequestError(f"the augmentation {text} has a part twice")
    return parts


def augmented(
    images: Float[Tensor, "n c h w"], parts: tuple[AugmentationInfo, ...], generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Each image moved by draws of its own; what comes in from outside repeats the border.

    Args:
        images: of any range.
        parts: what is done to them, in this order.
        generator: on the CPU.
    """
    if not parts:
        return images
    whole = torch.eye(3).repeat(len(images), 1, 1)
    for part in parts:
        # A point of the new image goes back through the last change first.
        whole = whole @ part.draw(len(images), generator)
    grid = F.affine_grid(whole[:, :2].to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)

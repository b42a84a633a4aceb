"""Differentiable augmentation: parameters are drawn from a generator, then applied to images.

Three ways to use the parts of one registry:
    - `augmented`: all parts, each image with draws of its own;
    - `one_of`: one part for the whole batch, each image with draws of its own, as networks are trained with in Zhao and
      Bilen, "Dataset Condensation with Differentiable Siamese Augmentation" (ICML 2021);
    - `siamese`: one part with one draw for all images, the same for every batch that it is applied to (section 3.2 of
      that paper): the real and the synthetic batch are seen through one transformation.

Strengths are those of that paper's code: crop by an eighth of the edge, cutout of half of it, scale 1.2, rotation of
15 degrees, brightness 1, saturation 2, contrast 0.5. Scale is drawn on a logarithmic scale here. `rotate45` is what the
authors of gradient matching judge MNIST with (Zhao et al. 2021, their code).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from datadistill.utils.errors import RequestError
from datadistill.utils.registry import Registry

NONE = "none"

Matrices: TypeAlias = Float[Tensor, "n 3 3"]
Transform: TypeAlias = Callable[[Tensor], Tensor]
"""Images [n, c, h, w] to images of the same shape, differentiable."""


@dataclass(frozen=True)
class AugmentationInfo:
    """A way in which images are changed.

    Attributes:
        name: what people type.
        line: one line of explanation.
        draw: parameters [n, p, ...] for so many images of this edge in pixels.
        apply: images with these parameters, one for each image or one for all of them, and what is beyond the border:
            `zeros` or `border`.
        moves: whether the parameters are matrices that take a point of the new image to one of the old, both from -1
            to 1.
    """

    name: str
    line: str
    draw: Callable[[int, int, torch.Generator], Tensor]
    apply: Callable[[Tensor, Tensor, str], Tensor]
    moves: bool = False


def _uniform(count: int, generator: torch.Generator) -> Float[Tensor, "{count}"]:
    """Uniform draws from -1 to 1."""
    return 2 * torch.rand(count, generator=generator) - 1


def _matrices(count: int, entries: dict[tuple[int, int], Tensor]) -> Matrices:
    found = torch.eye(3).repeat(count, 1, 1)
    for (row, column), values in entries.items():
        found[:, row, column] = values
    return found


def _shift(count: int, edge: int, generator: torch.Generator) -> Matrices:
    # An eighth of the edge, which is 2 units long.
    return _matrices(count, {(0, 2): _uniform(count, generator) / 4, (1, 2): _uniform(count, generator) / 4})


def _crop(count: int, edge: int, generator: torch.Generator) -> Matrices:
    most = int(edge / 8 + 0.5)
    pixels = torch.randint(-most, most + 1, (2, count), generator=generator)
    return _matrices(count, {(0, 2): 2 * pixels[0] / edge, (1, 2): 2 * pixels[1] / edge})


def _scale(count: int, edge: int, generator: torch.Generator) -> Matrices:
    factors = [torch.exp(math.log(1.2) * _uniform(count, generator)) for _ in range(2)]
    return _matrices(count, {(0, 0): factors[0], (1, 1): factors[1]})


def _rotate(count: int, edge: int, generator: torch.Generator, degrees: float = 15.0) -> Matrices:
    angle = math.radians(degrees) * _uniform(count, generator)
    return _matrices(count, {(0, 0): angle.cos(), (0, 1): -angle.sin(), (1, 0): angle.sin(), (1, 1): angle.cos()})


def _flip(count: int, edge: int, generator: torch.Generator) -> Matrices:
    return _matrices(count, {(0, 0): _uniform(count, generator).sign()})


def _warped(images: Tensor, matrices: Tensor, beyond: str) -> Tensor:
    matrices = matrices.to(images).expand(len(images), 3, 3)
    grid = F.affine_grid(matrices[:, :2], list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=beyond, align_corners=False)


def _color(count: int, edge: int, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    return torch.rand(count, 3, generator=generator)


def _coloured(images: Tensor, draws: Tensor, beyond: str) -> Tensor:
    """Brightness, then saturation, then contrast, of images that are normalised."""
    brightness, saturation, contrast = (column.view(-1, 1, 1, 1) for column in draws.to(images).unbind(1))
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    level = images.mean((1, 2, 3), keepdim=True)
    return level + (images - level) * (contrast + 0.5)


def _cutout(count: int, edge: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, edge + 1 - int(edge / 2 + 0.5) % 2, (count, 2), generator=generator)


def _cut(images: Tensor, centres: Tensor, beyond: str) -> Tensor:
    """A square of half the edge becomes zero; its centre may lie at the border."""
    masks = []
    for size, centre in zip(images.shape[-2:], centres.to(images.device).unbind(1), strict=True):
        side, places = int(size / 2 + 0.5), torch.arange(size, device=images.device)
        first = centre[:, None] - side // 2
        masks.append((places >= first) & (places < first + side))
    inside = masks[0][:, None, :, None] & masks[1][:, None, None, :]
    return torch.where(inside, torch.zeros((), dtype=images.dtype, device=images.device), images)


AUGMENTATIONS = Registry(
    "augmentation",
    (
        AugmentationInfo("shift", "up to an eighth of the edge in both directions", _shift, _warped, moves=True),
        AugmentationInfo("scale", "by up to 1.2 in both directions, each by itself", _scale, _warped, moves=True),
        AugmentationInfo("rotate", "by up to 15 degrees", _rotate, _warped, moves=True),
        AugmentationInfo("rotate45", "by up to 45 degrees", partial(_rotate, degrees=45.0), _warped, moves=True),
        AugmentationInfo("flip", "left to right, every other image", _flip, _warped, moves=True),
        AugmentationInfo("crop", "moved by whole pixels, up to an eighth of the edge", _crop, _warped, moves=True),
        AugmentationInfo("color", "brightness, saturation and contrast", _color, _coloured),
        AugmentationInfo("cutout", "a square of half the edge set to zero", _cutout, _cut),
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
    images: Float[Tensor, "n c h w"], parts: Sequence[AugmentationInfo], generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Augmentation by all parts in their order, with parameters for each image; border padding.

    Args:
        images: of any range.
        parts: what is done to them.
        generator: on the CPU.
    """
    moved: Tensor | None = None  # neighbouring moves are one
    for part in parts:
        drawn = part.draw(len(images), images.shape[-1], generator)
        if part.moves:
            # A point of the new image goes back through the last change first.
            moved = drawn if moved is None else moved @ drawn
            continue
        if moved is not None:
            images, moved = _warped(images, moved, "border"), None
        images = part.apply(images, drawn, "border")
    return images if moved is None else _warped(images, moved, "border")


def one_of(
    images: Float[Tensor, "n c h w"],
    parts: Sequence[AugmentationInfo],
    generator: torch.Generator,
    first: int = 0,
    total: int = 0,
) -> Float[Tensor, "n c h w"]:
    """Augmentation by one of the parts, drawn for the whole batch, with parameters for each image; zero padding.

    Args:
        images: of any range; a batch, or a piece of one.
        parts: the choice; without any the images stay as they are.
        generator: on the CPU; every piece of a batch takes it in the same state.
        first: the first of these images in their batch.
        total: images of the batch; 0: these are all.
    """
    if not parts:
        return images
    part = _chosen(parts, generator)
    drawn = part.draw(total or len(images), images.shape[-1], generator)
    return part.apply(images, drawn[first : first + len(images)], "zeros")


def siamese(parts: Sequence[AugmentationInfo], edge: int, generator: torch.Generator) -> Transform:
    """Siamese augmentation: one of the parts with one draw for all images; zero padding.

    Args:
        parts: the choice; without any, images stay as they are.
        edge: of the images in pixels.
        generator: on the CPU.
    """
    if not parts:
        return lambda images: images
    part = _chosen(parts, generator)
    drawn = part.draw(1, edge, generator)
    return lambda images: part.apply(images, drawn, "zeros")


def _chosen(parts: Sequence[AugmentationInfo], generator: torch.Generator) -> AugmentationInfo:
    return parts[int(torch.randint(len(parts), (), generator=generator))]

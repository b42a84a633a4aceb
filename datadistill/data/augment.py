"""Differentiable augmentation: parameters are drawn from a generator, then applied to images.

A strategy is parts of one registry: `color_crop_warp20+cutout` has three, of which the last one is two changes, one
after the other. Three ways to use it:
    - `augmented`: all parts, each image with draws of its own;
    - `one_of`: one part for the whole batch, each image with draws of its own, as networks are trained with in Zhao and
      Bilen, "Dataset Condensation with Differentiable Siamese Augmentation" (ICML 2021);
    - `siamese`: one part with one draw for all images, the same for every batch that it is applied to (section 3.2 of
      that paper): the real and the synthetic batch are seen through one transformation.

Strengths are those of that paper's code: crop by an eighth of the edge, cutout of half of it, scale 1.2, rotation of
15 degrees, brightness 1, saturation 2, contrast 0.5. Scale is drawn on a logarithmic scale here. `rotate45` is what the
authors of gradient matching judge MNIST with (Zhao et al. 2021, their code). `warp10` and `warp20` are ours: rotation,
shear, scale, shift and a smooth random displacement (as the elastic distortions of Simard, Steinkraus and Platt, "Best
Practices for Convolutional Neural Networks Applied to Visual Document Analysis", ICDAR 2003) in one interpolation.
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
        moves: whether pixels come from other places of the image, which cannot be differentiated forwards.
    """

    name: str
    line: str
    draw: Callable[[int, int, torch.Generator], Tensor]
    apply: Callable[[Tensor, Tensor, str], Tensor]
    moves: bool = False

    @property
    def is_linear(self) -> bool:
        """Whether the parameters are matrices, which take a point of the new image to one of the old, from -1 to 1."""
        return self.apply is _warped


Part: TypeAlias = tuple[AugmentationInfo, ...]
"""Changes that are made one after the other."""


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


_GRID = 4
"""Knots of a random displacement along an edge."""


def _warp(count: int, edge: int, generator: torch.Generator, degrees: float) -> Float[Tensor, "n 2 d"]:
    """The rows of a matrix, and displacements of the knots behind them; all in proportion to the largest angle."""
    share = degrees / 20
    turn = _rotate(count, edge, generator, degrees)
    log = math.log(1.3) * share * _uniform(2 * count, generator)
    shape = _matrices(count, {(0, 0): log[:count].exp(), (1, 1): log[count:].exp()})
    shape[:, 0, 1] = 0.2 * share * _uniform(count, generator)
    rows = (turn @ shape)[:, :2]
    rows[:, :, 2] = share / 4 * _uniform(2 * count, generator).view(count, 2)
    knots = 0.1 * share * torch.randn(count, 2, _GRID**2, generator=generator)
    return torch.cat([rows, knots], 2)


def _bent(images: Tensor, draws: Tensor, beyond: str) -> Tensor:
    draws = draws.to(images).expand(len(images), -1, -1)
    grid = F.affine_grid(draws[:, :, :3], list(images.shape), align_corners=False)
    knots = draws[:, :, 3:].reshape(len(images), 2, _GRID, _GRID)
    bend = F.interpolate(knots, images.shape[-2:], mode="bicubic", align_corners=True)
    places = grid + bend.permute(0, 2, 3, 1)
    return F.grid_sample(images, places, mode="bilinear", padding_mode=beyond, align_corners=False)


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
        AugmentationInfo("warp10", "half as much as warp20", partial(_warp, degrees=10.0), _bent, moves=True),
        AugmentationInfo(
            "warp20",
            "turned by up to 20 degrees, scaled, sheared, shifted and bent",
            partial(_warp, degrees=20.0),
            _bent,
            moves=True,
        ),
        AugmentationInfo("color", "brightness, saturation and contrast", _color, _coloured),
        AugmentationInfo("cutout", "a square of half the edge set to zero", _cutout, _cut),
    ),
)


def parse_augmentation(text: str) -> tuple[Part, ...]:
    """The parts of `shift_rotate` or `crop_warp20+cutout`, for instance; `none` has none.

    Raises:
        RequestError: a change is unknown, or there is a part twice, or a change in one part.
    """
    names = [] if text.strip().lower() == NONE else text.split("_")
    parts = tuple(tuple(AUGMENTATIONS.get(change) for change in name.split("+")) for name in names)
    if len(set(parts)) < len(parts) or any(len(set(part)) < len(part) for part in parts):
        raise RequestError(f"the augmentation {text} has a part twice")
    return parts


def augmented(
    images: Float[Tensor, "n c h w"], parts: Sequence[Part], generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Augmentation by all parts in their order, with parameters for each image; border padding.

    Args:
        images: of any range.
        parts: what is done to them.
        generator: on the CPU.
    """
    changes = tuple(change for part in parts for change in part)
    return _changed(images, changes, _drawn(changes, len(images), images.shape[-1], generator), "border")


def one_of(
    images: Float[Tensor, "n c h w"],
    parts: Sequence[Part],
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
    drawn = _drawn(part, total or len(images), images.shape[-1], generator)
    return _changed(images, part, [draws[first : first + len(images)] for draws in drawn], "zeros")


def siamese(parts: Sequence[Part], edge: int, generator: torch.Generator) -> Transform:
    """Siamese augmentation: one of the parts with one draw for all images; zero padding.

    Args:
        parts: the choice; without any, images stay as they are.
        edge: of the images in pixels.
        generator: on the CPU.
    """
    if not parts:
        return lambda images: images
    part = _chosen(parts, generator)
    drawn = _drawn(part, 1, edge, generator)
    return lambda images: _changed(images, part, drawn, "zeros")


def _chosen(parts: Sequence[Part], generator: torch.Generator) -> Part:
    return parts[int(torch.randint(len(parts), (), generator=generator))]


def _drawn(part: Part, count: int, edge: int, generator: torch.Generator) -> list[Tensor]:
    return [change.draw(count, edge, generator) for change in part]


def _changed(images: Tensor, part: Part, drawn: Sequence[Tensor], beyond: str) -> Tensor:
    moved: Tensor | None = None  # neighbouring matrices are one
    for change, draws in zip(part, drawn, strict=True):
        if change.is_linear:
            # A point of the new image goes back through the last change first.
            moved = draws if moved is None else moved @ draws
            continue
        if moved is not None:
            images, moved = _warped(images, moved, beyond), None
        images = change.apply(images, draws, beyond)
    return images if moved is None else _warped(images, moved, beyond)

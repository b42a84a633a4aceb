"""Pictures inside a page: many images as one PNG, each in 8 bits with its own range."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from datadistill.data.readers.image_files import picture_of
from datadistill.distillation.history import EightBit

MOST_NUMBERS = 4 * 2**20
"""Of all pixels of a sheet together; larger images are made smaller, so that a page stays one that can be sent."""

_SMALLEST = 16


@dataclass(frozen=True)
class Sheet:
    """Images as one PNG, row by row.

    Attributes:
        png: the file, in base 64.
        size: of one image: height, width.
        across: images in a row.
        low: what level 0 stands for in each image.
        high: what level 255 stands for.
    """

    png: str
    size: tuple[int, int]
    across: int
    low: list[float]
    high: list[float]

    def as_json(self) -> dict[str, Any]:
        """For the page's script."""
        return {"png": self.png, "size": self.size, "across": self.across, "low": self.low, "high": self.high}


def sheet_of(images: EightBit) -> Sheet:
    """The sheet of images [n, c, h, w]; of other than three channels the first is shown, in grey."""
    levels = images.levels if images.levels.shape[1] == 3 else images.levels[:, :1]
    count, channels, height, width = levels.shape
    across = max(1, round((count * height / width) ** 0.5))
    down = -(-count // across)
    padded = torch.zeros(across * down, channels, height, width, dtype=torch.uint8)
    padded[:count] = levels
    grid = padded.view(down, across, channels, height, width).permute(0, 3, 1, 4, 2)
    array = grid.reshape(down * height, across * width, channels).numpy()
    buffer = io.BytesIO()
    picture_of(array).save(buffer, "PNG", compress_level=6)
    png = base64.b64encode(buffer.getvalue()).decode()
    return Sheet(png, (height, width), across, _short(images.low), _short(images.high))


def fitting(pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """The images, smaller by a whole number where all together are too many numbers for a page."""
    shrink = 1
    while pixels.numel() > MOST_NUMBERS * shrink**2 and min(pixels.shape[2:]) // (shrink + 1) >= _SMALLEST:
        shrink += 1
    return F.avg_pool2d(pixels, shrink) if shrink > 1 else pixels


def _short(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]

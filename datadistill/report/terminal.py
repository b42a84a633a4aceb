"""Distilled images in a terminal: each character is two pixels, one above the other."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from torch import Tensor

from datadistill.distillation.history import first_of_each_class
from datadistill.distilled import DistilledData
from datadistill.report.sheet import viewable
from datadistill.utils.errors import plain

_MOST, _ACROSS, _LEAST = 100, 5, 8
_SHADES = " ░▒▓█"


def print_images(distilled: DistilledData, console: Console) -> None:
    """Print the images by class, each in its own contrast, smaller where five in a row would not fit otherwise."""
    chosen = first_of_each_class(distilled.labels.cpu(), _MOST)
    order = chosen[distilled.labels.cpu()[chosen].argsort(stable=True)]
    images = viewable(distilled.provenance.normalization.invert(distilled.images[order]).cpu())
    room = max(_LEAST, (console.width + 1) // _ACROSS - 1)
    shrink = -(-images.shape[3] // room)
    if shrink > 1 and min(images.shape[2:]) >= shrink:
        images = F.avg_pool2d(images, shrink)
    across = max(1, (console.width + 1) // (images.shape[3] + 1))
    names = [plain(distilled.provenance.classes[label]) for label in distilled.labels[order].tolist()]
    has_colour = console.color_system is not None and not console.no_color
    for first in range(0, len(order), across):
        row = slice(first, first + across)
        width = images.shape[3]
        console.print(
            " ".join(name[:width].ljust(width) for name in names[row]).rstrip(), markup=False, highlight=False
        )
        for line in _lines(images[row], has_colour):
            console.print(_Line(line), end="")
        console.print()
    if len(order) < len(distilled.labels):
        console.print(f"{len(order)} of {len(distilled.labels):,} images, the first of each class", highlight=False)


class _Line:
    """Segments of one line, as rich prints them."""

    def __init__(self, segments: list[Segment]) -> None:
        self.segments = segments

    def __rich_console__(self, console: Console, options: object) -> list[Segment]:
        return [*self.segments, Segment.line()]


def _lines(images: Float[Tensor, "n c h w"], has_colour: bool) -> list[list[Segment]]:
    """The lines of images side by side."""
    images = images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)
    levels = (F.pad(images, (0, 0, 0, images.shape[2] % 2)) * 255).round().to(torch.uint8).permute(2, 0, 3, 1).tolist()
    lines = []
    for upper, lower in zip(levels[::2], levels[1::2], strict=True):
        segments: list[Segment] = []
        for above, below in zip(upper, lower, strict=True):
            segments += [_cell(top, bottom, has_colour) for top, bottom in zip(above, below, strict=True)]
            segments.append(Segment(" "))
        lines.append(segments[:-1])
    return lines


def _cell(top: list[int], bottom: list[int], has_colour: bool) -> Segment:
    if has_colour:
        return Segment(
            "▀", Style(color=f"rgb({','.join(map(str, top))})", bgcolor=f"rgb({','.join(map(str, bottom))})")
        )
    return Segment(_SHADES[sum(top + bottom) * len(_SHADES) // (6 * 256)])

"""A sheet: all distilled images in one picture, classes side by side."""

import io
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from datadistill.distilled import DistilledData
from datadistill.utils.errors import plain
from datadistill.utils.files import write_atomically

SHEET_NAME = "sheet.png"
_CELL, _GAP, _CAPTION, _MARGIN = 112, 8, 22, 16
_CLASSES_ACROSS = 10
_PAPER, _INK, _SOFT = (255, 255, 255), (30, 30, 30), (110, 110, 110)
_SIGMAS = 2.5


def save_sheet(distilled: DistilledData, path: Path) -> None:
    """Write the sheet as a PNG, atomically."""
    write_atomically(path, sheet_file(distilled))


def sheet_file(distilled: DistilledData) -> bytes:
    """The sheet as the content of a PNG file."""
    buffer = io.BytesIO()
    draw_sheet(distilled).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def draw_sheet(distilled: DistilledData) -> Image.Image:
    """One column for each class with its name above, images of the class below it; ten classes in a row.

    Learned pixels leave the range of real ones, so each image is shown in its own contrast: its mean is mid-grey and
    2.5 of its standard deviations reach black and white.
    """
    images = viewable(distilled.pixels().cpu())
    classes = distilled.provenance.classes
    members = [torch.nonzero(distilled.labels.cpu() == k).flatten().tolist() for k in range(len(classes))]
    deep = max(1, *(len(m) for m in members))
    across = min(_CLASSES_ACROSS, len(classes))
    bands = -(-len(classes) // across)
    cell = _CELL if deep <= 12 and bands <= 2 else _CELL // 2
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    footer = _footer(distilled)
    width = max(2 * _MARGIN + across * (cell + _GAP) - _GAP, 2 * _MARGIN + int(small.getlength(footer)))
    band = _CAPTION + deep * (cell + _GAP)
    sheet = Image.new("RGB", (width, 2 * _MARGIN + bands * band + _CAPTION), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for label, name in enumerate(classes):
        left = _MARGIN + (label % across) * (cell + _GAP)
        top = _MARGIN + (label // across) * band
        draw.text((left + cell / 2, top), _fit(plain(name), font, cell), _INK, font, anchor="ma")
        for row, index in enumerate(members[label]):
            place = (left, top + _CAPTION + row * (cell + _GAP))
            sheet.paste(_picture(images[index], cell), place)
    draw.text((_MARGIN, sheet.height - _MARGIN), footer, _SOFT, small, anchor="ls")
    return sheet


def viewable(pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Each image centred at 0.5 and scaled so that 2.5 standard deviations reach 0 and 1, then clipped."""
    flat = pixels.flatten(1)
    mean = flat.mean(1)[:, None, None, None]
    spread = flat.std(1, correction=0).clamp_min(1e-6)[:, None, None, None]
    return (0.5 + (pixels - mean) / (2 * _SIGMAS * spread)).clamp(0, 1)


def _picture(image: Float[Tensor, "c h w"], size: int) -> Image.Image:
    array = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    grey = array.shape[2] != 3
    picture = Image.fromarray(array[..., 0] if grey else array).convert("RGB")
    return picture.resize((size, size), Image.Resampling.NEAREST)


def _footer(distilled: DistilledData) -> str:
    mine = distilled.provenance
    count = len(distilled.labels)
    kind = mine.weights.get("kind", "")
    return plain(
        f"{Path(mine.dataset).name}, {count} image{'s' if count != 1 else ''}, {mine.method.get('name', '')}, "
        f"{mine.model}, {kind}; each image in its own contrast"
    )


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"

"""A folder for each class with PNG pictures in it, as torchvision's ImageFolder reads it.

Pixels are cut off at black and white and rounded to 8 bits, which learned images can suffer from (`cost`). A JSON file
beside the folders holds what pictures cannot: class names, order, batches, rates.
"""

import io
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from datadistill.data.readers.image_files import open_picture, picture_of
from datadistill.data.readers.layout import SUFFIXES
from datadistill.distilled import DistilledData
from datadistill.formats.base import Foreign, whole_folder
from datadistill.formats.sidecar import read_sidecar, restore, write_sidecar
from datadistill.utils.errors import DamagedFileError, RequestError, reason_of, require
from datadistill.utils.files import write_atomically


@dataclass(frozen=True)
class Cost:
    """Error of 8-bit quantisation; distances are in steps of 1/255.

    Attributes:
        cut: share of values outside black and white.
        mean: mean distance.
        worst: largest distance.
    """

    cut: float
    mean: float
    worst: float

    def __str__(self) -> str:
        return (
            f"{100 * self.cut:.1f} % of the values lie outside black and white and are cut off; on the whole values "
            f"change by {self.mean:.2f} of 255 steps on average, and by {self.worst:.1f} at most"
        )


def eight_bit(distilled: DistilledData) -> UInt8[Tensor, "n h w c"]:
    """The images as pictures hold them."""
    return (distilled.pixels().cpu() * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def rounded(distilled: DistilledData) -> DistilledData:
    """The data after quantisation to 8 bits."""
    return replace(distilled, images=distilled.provenance.normalization.apply(eight_bit(distilled)))


def cost(distilled: DistilledData) -> Cost:
    """Quantisation error of pictures."""
    pixels = distilled.pixels().cpu().permute(0, 2, 3, 1)
    apart = (pixels * 255 - eight_bit(distilled)).abs()
    # Half a step is rounding, not cutting.
    outside = (pixels < -0.5 / 255) | (pixels > 1 + 0.5 / 255)
    return Cost(float(outside.float().mean()), float(apart.mean()), float(apart.max()))


def folder_names(classes: tuple[str, ...]) -> list[str]:
    """A folder for each class that sorts as the classes do; names that could lead elsewhere are spelt otherwise."""
    plain = all(re.fullmatch(r"\w[\w -]{0,60}", name) and not name.endswith(" ") for name in classes)
    lowered = [name.lower() for name in classes]
    if plain and list(classes) == sorted(set(classes)) and len(set(lowered)) == len(lowered):
        return list(classes)
    width = len(str(len(classes) - 1))
    return [f"{n:0{width}d}-{re.sub(r'[^A-Za-z0-9]+', '-', name)[:40]}".strip("-") for n, name in enumerate(classes)]


def write_png(distilled: DistilledData, path: Path) -> None:
    """One picture for each image, named by its number.

    Raises:
        RequestError: the images have neither 1 nor 3 channels.
    """
    pictures = eight_bit(distilled)
    if pictures.shape[3] not in (1, 3):
        raise RequestError(f"the images have {pictures.shape[3]} channels, but pictures have 1 or 3")
    names = folder_names(distilled.provenance.classes)
    width = max(5, len(str(len(pictures))))
    with whole_folder(path) as folder:
        for name in names:
            (folder / name).mkdir()
        for number, (picture, label) in enumerate(zip(pictures.numpy(), distilled.labels.tolist(), strict=True)):
            buffer = io.BytesIO()
            picture_of(picture).save(buffer, "PNG")
            write_atomically(folder / names[label] / f"{number:0{width}d}.png", buffer.getvalue())
        write_sidecar(distilled, folder, folders=names)


def read_png(path: Path) -> list[Foreign | DistilledData]:
    """The folder's one set; with the JSON beside it in the order it was written, else class by class.

    Raises:
        DamagedFileError: there are no pictures, or they are damaged or of several shapes.
    """
    about = read_sidecar(path)
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = [(file, label) for label, folder in enumerate(folders) for file in sorted(folder.iterdir())]
    files = [(file, label) for file, label in files if file.suffix.lower() in SUFFIXES]
    require(len(files) > 0, f"{path} has no folders with pictures")
    if about is not None:
        known = about.get("folders")
        require(isinstance(known, list), "the JSON beside the pictures names no folders")
        places = {str(name): label for label, name in enumerate(known or [])}
        strange = [file for file, _ in files if file.parent.name not in places]
        require(not strange, "the JSON beside the pictures does not name every folder")
        files = sorted(((file, places[file.parent.name]) for file, _ in files), key=lambda entry: entry[0].name)
    pixels = torch.from_numpy(np.stack(_same_shape([picture_in(file, str(file)) for file, _ in files])))
    labels = torch.tensor([label for _, label in files])
    if about is None:
        return [Foreign(None, labels, pixels=pixels, classes=tuple(folder.name for folder in folders))]
    return [restore(about, _normalized(about, pixels), labels)]


def picture_in(source: Path | bytes, name: str) -> np.ndarray:
    """The pixels [H, W, C] of an encoded picture, which an error calls by a name.

    Raises:
        DamagedFileError: it is damaged, too large, or of another kind.
    """
    try:
        picture = open_picture(source)
        found = np.array(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"))
    except Exception as error:  # a damaged picture can fail in any way
        raise DamagedFileError(f"{name} is damaged or no picture ({reason_of(error)})") from error
    return found[..., None] if found.ndim == 2 else found


def _same_shape(pictures: list[np.ndarray]) -> list[np.ndarray]:
    shapes = sorted({picture.shape for picture in pictures})
    require(len(shapes) == 1, f"the pictures are of different shapes, such as {shapes[0]} and {shapes[-1]}")
    return pictures


def _normalized(about: dict[str, object], pixels: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n c h w"]:
    """Normalised as the JSON says; whether that is whole is found out with the rest of it."""
    blank: Int64[Tensor, n] = torch.zeros(len(pixels), dtype=torch.int64)
    plain = pixels.permute(0, 3, 1, 2).float().contiguous()
    bare = {name: about[name] for name in ("provenance",) if name in about}
    normalization = restore(bare | {"batches": [[0]]}, plain, blank).provenance.normalization
    return normalization.apply(pixels)

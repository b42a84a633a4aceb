"""Arrays become splits: what their numbers mean, and what their labels are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from datadistill.data.labelled import Labelled
from datadistill.data.options import Options, check_room
from datadistill.data.readers.image_files import common_size, to_pixels, upright
from datadistill.data.splits import Splits, class_order, clean_classes
from datadistill.utils.errors import RequestError

_PIECE = 1024
"""Images that are converted at a time."""


@dataclass(frozen=True, eq=False)
class Named:
    """An array.

    Attributes:
        name: what errors call it.
        values: of any shape and type.
    """

    name: str
    values: np.ndarray


Pair = tuple[Named, Named]
"""Images and labels."""


def read_arrays(what: str, pairs: dict[str, Pair], classes: Sequence[str] | None, options: Options) -> Splits:
    """Splits from arrays, in their order.

    Images are [n, h, w], [n, h, w, c] or [n, c, h, w] with 1, 3 or 4 (alpha) channels: whole numbers from 0 to 255;
    floats from 0 to 1, or to 255 where any is above 1, rounded to 8 bit. Labels are whole numbers or text, [n], [n, 1]
    or one-hot [n, k].

    Args:
        what: what errors call all of it.
        pairs: images and labels by role, `train` among them.
        classes: names by index; made from the labels without them.
        options: size and channels.

    Raises:
        RequestError: naming the array that is no images, or no labels.
    """
    for images, labels in pairs.values():
        if images.values.ndim < 1 or labels.values.ndim < 1 or len(images.values) != len(labels.values):
            raise RequestError(
                f"{images.name} has the shape {images.values.shape} and {labels.name} the shape "
                f"{labels.values.shape}: as many images as labels are needed"
            )
    found = {role: _plain_labels(labels) for role, (_, labels) in pairs.items()}
    index = _index(found, pairs, classes, what)
    names = clean_classes([str(name) for name in index] if classes is None else classes, what)
    shaped = {role: Named(images.name, _shaped(images)) for role, (images, _) in pairs.items()}
    pixels = _fitted(what, _as_bytes(shaped), options)
    splits = {
        role: Labelled(torch.from_numpy(pixels[role]), torch.tensor([index[one] for one in found[role]]).long())
        for role in pairs
    }
    return Splits(splits["train"], splits.get("held_out"), splits.get("test"), names)


def _plain_labels(labels: Named) -> list[int] | list[str]:
    """Whole numbers or text, one for each image."""
    values = labels.values
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2 and values.dtype.kind in "iubf":
        if not (((values == 0) | (values == 1)).all() and (values.sum(1) == 1).all()):
            raise RequestError(f"{labels.name} has the shape {values.shape}, but is not one-hot: one label is needed")
        values = values.argmax(1)
    if values.ndim != 1:
        raise RequestError(f"{labels.name} has the shape {values.shape}, but labels are [n], [n, 1] or one-hot [n, k]")
    if values.dtype.kind in "iub":
        return [int(value) for value in values.tolist()]
    if values.dtype.kind == "U":
        return [str(value) for value in values.tolist()]
    if values.dtype.kind == "S":
        return [value.decode(errors="replace") for value in values.tolist()]
    raise RequestError(f"{labels.name} is {values.dtype}, but labels are whole numbers or text")


def _index(
    found: dict[str, list[int] | list[str]], pairs: dict[str, Pair], classes: Sequence[str] | None, what: str
) -> dict[int | str, int]:
    """The class index of every label."""
    values, index = set[int | str](found["train"]), dict[int | str, int]()
    if classes is None:
        ordered: list[int | str] = sorted(
            values, key=lambda one: (0, one, "") if isinstance(one, int) else class_order(one)
        )
        index.update((value, number) for number, value in enumerate(ordered))
    elif all(isinstance(value, str) for value in values):
        index.update((name, number) for number, name in enumerate(classes))
    else:
        index.update((number, number) for number in range(len(classes)))
    for role, labels in found.items():
        strange = next((label for label in labels if label not in index), None)
        if strange is not None:
            known = f"not one of the {len(classes)} classes" if classes is not None else "of no image to train on"
            raise RequestError(f"{pairs[role][1].name} of {what} has the label {strange!r:.60}, which is {known}")
    return index


def _shaped(images: Named) -> np.ndarray:
    """Images as [n, h, w, c]."""
    values = images.values
    if values.ndim == 3:
        values = values[..., None]
    elif values.ndim == 4 and values.shape[3] not in (1, 3, 4) and values.shape[1] in (1, 3, 4):
        values = values.transpose(0, 2, 3, 1)
    if values.ndim != 4 or values.shape[3] not in (1, 3, 4) or 0 in values.shape[1:]:
        raise RequestError(
            f"{images.name} has the shape {images.values.shape}, but images are [n, h, w], [n, h, w, c] or "
            "[n, c, h, w] with 1, 3 or 4 channels"
        )
    return values


def _as_bytes(images: dict[str, Named]) -> dict[str, np.ndarray]:
    """8-bit pixels; what floats mean is decided for all splits together."""
    highest = {role: _range(named) for role, named in images.items()}
    factor = 255.0 if max((top for top in highest.values() if top is not None), default=0.0) <= 1 else 1.0
    made = {}
    for role, named in images.items():
        values = named.values
        made[role] = np.empty(values.shape, np.uint8)
        scale = factor if values.dtype.kind == "f" else 255 if values.dtype.kind == "b" else 1
        for first in range(0, len(values), _PIECE):
            piece = values[first : first + _PIECE]
            exact = piece if piece.dtype.kind in "iu" else np.rint(piece.astype(np.float64) * scale)
            made[role][first : first + _PIECE] = exact
    return made


def _range(images: Named) -> float | None:
    """The largest of floats, or None for whole numbers.

    Raises:
        RequestError: they are no pixels.
    """
    values = images.values
    if values.dtype.kind not in "iubf":
        raise RequestError(f"{images.name} is {values.dtype}, but pixels are whole numbers or floats")
    if values.dtype.kind == "b" or not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):  # false for NaN, too
        raise RequestError(
            f"{images.name} has values from {low:g} to {high:g}, but pixels are from 0 to 255, or floats from 0 to 1 "
            "(not normalised: that is done here)"
        )
    return high if values.dtype.kind == "f" else None


def _fitted(what: str, pixels: dict[str, np.ndarray], options: Options) -> dict[str, np.ndarray]:
    """All splits at one size and with the same channels, as for images in files."""
    size = options.size or common_size(
        [(one.shape[2], one.shape[1]) for one in pixels.values()], f"the images of {what}"
    )
    check_room(what, sum(map(len, pixels.values())) * size * size * (options.channels or 3))
    made = {}
    for role, images in pixels.items():
        if images.shape[3] == 4:
            images = np.stack([np.asarray(upright(Image.fromarray(image))) for image in images])
        if images.shape[1:3] != (size, size) or (images.shape[3], options.channels) == (3, 1):
            images = np.stack([to_pixels(_picture(image), size, options.channels or 3) for image in images])
        made[role] = images
    channels = options.channels or max(_channels(images) for images in made.values())
    return {role: _with_channels(images, channels) for role, images in made.items()}


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else np.ascontiguousarray(image))


def _channels(images: np.ndarray) -> int:
    """1 where all channels are equal."""
    return 1 if all(not np.ptp(image, axis=-1).any() for image in images) else 3


def _with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    if images.shape[3] != channels:
        images = np.repeat(images, 3, axis=3) if channels == 3 else images[..., :1]
    return np.ascontiguousarray(images)

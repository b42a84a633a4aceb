"""Reader of arrays: range of pixel values, labels, splits."""

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datadistill.data.labelled import Labelled
from datadistill.data.levels import Numbers, check_range, eight_bit, remarks_on, white_of_floats, white_of_whole
from datadistill.data.options import Options, check_room
from datadistill.data.readers.image_files import common_size, deep_values, picture_of, shown, to_pixels, upright
from datadistill.data.splits import Splits, class_order, clean_classes
from datadistill.utils.errors import RequestError, reason_of

_PIECE = 1024
"""Images that are converted at a time."""

_SOME = 100
"""Images whose different numbers are counted."""


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


def as_array(values: Any, name: str) -> np.ndarray:
    """An array of whatever can be one: a tensor on any device, nested lists, Pillow images, a table's column.

    Args:
        values: what the user gave.
        name: what errors call it.

    Raises:
        RequestError: it is none, for instance because its items have several shapes.
    """
    try:
        if isinstance(values, Tensor):
            plain = values.detach().cpu()
            usual = plain.dtype in (torch.float16, torch.float32, torch.float64) or not plain.is_floating_point()
            return (plain if usual else plain.float()).numpy()
        if isinstance(values, Image.Image):
            deep = deep_values(values)
            return np.asarray(upright(values)) if deep is None else deep
        if isinstance(values, list | tuple) and any(isinstance(one, Tensor | Image.Image) for one in values):
            return np.stack([as_array(one, name) for one in values])
        return np.asarray(values)
    except Exception as error:  # NumPy, PyTorch, Pillow and a user's own conversion raise errors of their own
        shapes = "shape" in str(error)
        reason = "its items have several shapes" if shapes else shown(reason_of(error))
        raise RequestError(f"{name} is a {type(values).__name__} that is no array: {reason}") from error


def class_names(values: Any, name: str = "classes") -> tuple[list[str], bool] | None:
    """Class names by index, and whether they were given as numbers; None where there are none.

    Args:
        values: a list of text or numbers.
        name: what errors call it.

    Raises:
        RequestError: it is something else.
    """
    if values is None:
        return None
    if isinstance(values, Tensor | np.ndarray):
        values = as_array(values, name).tolist()
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise RequestError(f"{name} is a {type(values).__name__}, but must be a list of names, by index")
    names = []
    for number, one in enumerate(values):
        if not isinstance(one, str | bytes | numbers.Integral):
            raise RequestError(f"item {number} of {name} is a {type(one).__name__}, but a class's name is text")
        names.append(one.decode(errors="replace") if isinstance(one, bytes) else str(one))
    are_numbers = all(isinstance(one, numbers.Integral) and not isinstance(one, bool) for one in values)
    return names, bool(names) and are_numbers


def read_arrays(what: str, pairs: dict[str, Pair], classes: Any, options: Options) -> Splits:
    """Splits from arrays, in their order.

    Images are [n, h, w], [n, h, w, c] or [n, c, h, w] with 1, 3 or 4 (alpha) channels: whole numbers or floats, of
    which white is said by the options or inferred (`levels`), and rounded to 8 bit. Labels are whole numbers or text,
    [n], [n, 1] or one-hot [n, k].

    Args:
        what: what errors call all of it.
        pairs: images and labels by role, `train` among them.
        classes: names by index, or numbers that are the labels; made from the labels without them.
        options: size, channels and white.

    Raises:
        RequestError: naming the array that is no images, or no labels, or the classes that are no names.
    """
    for images, labels in pairs.values():
        if images.values.ndim < 1 or labels.values.ndim < 1 or len(images.values) != len(labels.values):
            raise RequestError(
                f"{images.name} has the shape {images.values.shape} and {labels.name} the shape "
                f"{labels.values.shape}: as many images as labels are needed"
            )
    found = {role: _plain_labels(labels) for role, (_, labels) in pairs.items()}
    known = class_names(classes)
    index = _index(found, pairs, known, what)
    names = clean_classes([str(name) for name in index] if known is None else known[0], what)
    shaped = {role: Named(images.name, _shaped(images)) for role, (images, _) in pairs.items()}
    levels, whites, remarks = _as_bytes(shaped, options.white)
    pixels = _fitted(what, levels, options)
    splits = {
        role: Labelled(torch.from_numpy(pixels[role]), torch.tensor([index[one] for one in found[role]]).long())
        for role in pairs
    }
    return Splits(splits["train"], splits.get("held_out"), splits.get("test"), names, tuple(remarks), whites)


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
    items = values.tolist()
    if values.dtype.kind in "iub" or (items and all(isinstance(one, numbers.Integral) for one in items)):
        return [int(one) for one in items]
    if all(isinstance(one, numbers.Real) and float(one).is_integer() for one in items):
        return [int(one) for one in items]
    if all(isinstance(one, str) for one in items):
        return [str(one) for one in items]
    if values.dtype.kind == "S":
        return [one.decode(errors="replace") for one in items]
    raise RequestError(f"{labels.name} is {values.dtype}, but labels are whole numbers or text")


def _index(
    found: dict[str, list[int] | list[str]], pairs: dict[str, Pair], known: tuple[list[str], bool] | None, what: str
) -> dict[int | str, int]:
    """The class index of every label."""
    values, index = set[int | str](found["train"]), dict[int | str, int]()
    if known is None:
        ordered: list[int | str] = sorted(
            values, key=lambda one: (0, one, "") if isinstance(one, int) else class_order(one)
        )
        index.update((value, number) for number, value in enumerate(ordered))
    elif all(isinstance(value, str) for value in values):
        index.update((name, number) for number, name in enumerate(known[0]))
    elif known[1]:
        index.update((int(name), number) for number, name in enumerate(known[0]))
    else:
        index.update((number, number) for number in range(len(known[0])))
    for role, labels in found.items():
        strange = next((label for label in labels if label not in index), None)
        if strange is not None:
            why = "of no image to train on" if known is None else f"not one of the {len(known[0])} classes"
            raise RequestError(f"{pairs[role][1].name} of {what} has the label {strange!r:.60}, which is {why}")
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


def _as_bytes(
    images: dict[str, Named], white: int | float | None
) -> tuple[dict[str, np.ndarray], tuple[int | float, ...], list[str]]:
    """8-bit pixels by role; the values taken for white where that is inferred; and remarks.

    What is white, all splits together decide: floats by themselves, and whole numbers of more than 8 bits.
    """
    kinds: dict[str, dict[str, Numbers]] = {"floats": {}, "whole": {}, "8 bit": {}}
    for role, named in images.items():
        parts = kinds[_kind(named)]
        parts[role] = _numbers(named)
    _check_binary(images, [part for parts in kinds.values() for part in parts.values()])
    made = {role: images[role].values.astype(np.uint8) * _unit(images[role]) for role in kinds["8 bit"]}
    whites, remarks = list[int | float](), list[str]()
    for kind, guess in (
        ("floats", white_of_floats),
        ("whole", white_of_whole),
    ):
        parts = kinds[kind]
        if not parts:
            continue
        chosen = white or guess(list(parts.values()))
        made |= {role: _levels(images[role].values, chosen) for role in parts}
        if kind == "floats" or chosen != 255:
            whites.append(chosen)
            remarks += remarks_on([made[role] for role in parts], chosen, list(parts.values()))
    return {role: made[role] for role in images}, tuple(whites), remarks


def _kind(images: Named) -> str:
    kind, width = images.values.dtype.kind, images.values.dtype.itemsize
    if kind not in "iubf":
        raise RequestError(f"{images.name} is {images.values.dtype}, but pixels are whole numbers or floats")
    return "floats" if kind == "f" else "whole" if kind == "i" or width > 1 else "8 bit"


def _check_binary(images: dict[str, Named], parts: list[Numbers]) -> None:
    """Refuse whole numbers up to 1 beside truth values, floats or larger numbers, of which 1 may be white.

    Raises:
        RequestError: naming both.
    """
    types = {named.name: named.values.dtype.kind.replace("u", "i") for named in images.values()}
    for part in parts:
        other = next((one for one in parts if types[one.name] != types[part.name]), None)
        if types[part.name] == "i" and part.high == 1 and other is not None:
            raise RequestError(
                f"{part.name} has values up to 1 and {other.name}, of another type, up to {other.high:g}: give both in "
                "one range"
            )


def _unit(images: Named) -> np.uint8:
    return np.uint8(255 if images.values.dtype.kind == "b" else 1)


def _numbers(images: Named) -> Numbers:
    """Range of an array's values.

    Raises:
        RequestError: they are no pixels.
    """
    values = images.values
    if not values.size:
        return Numbers(images.name, 0, 0, True, 0)
    are_whole = values.dtype.kind != "f" or all(
        bool((np.rint(piece) == piece).all())
        for piece in (values[first : first + _PIECE] for first in range(0, len(values), _PIECE))
    )
    distinct = len(np.unique(values[:_SOME]))
    return check_range(Numbers(images.name, float(values.min()), float(values.max()), are_whole, distinct))


def _levels(values: np.ndarray, white: int | float) -> np.ndarray:
    found = np.empty(values.shape, np.uint8)
    for first in range(0, len(values), _PIECE):
        found[first : first + _PIECE] = eight_bit(values[first : first + _PIECE], white)
    return found


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
            images = np.stack([to_pixels(picture_of(image), size, options.channels or 3) for image in images])
        made[role] = images
    channels = options.channels or max(_channels(images) for images in made.values())
    return {role: _with_channels(images, channels) for role, images in made.items()}


def _channels(images: np.ndarray) -> int:
    """1 where all channels are equal."""
    return 1 if all(not np.ptp(image, axis=-1).any() for image in images) else 3


def _with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    if images.shape[3] != channels:
        images = np.repeat(images, 3, axis=3) if channels == 3 else images[..., :1]
    return np.ascontiguousarray(images)

"""Reader of `torch.utils.data.Dataset`s, as arrays."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from datadistill.data.arrays import Named, Pair, as_array
from datadistill.data.levels import Numbers, remarks_on, white_of_whole
from datadistill.data.options import Options
from datadistill.data.readers.image_files import deep_values, fitted, numbers_of, shallow, shown, upright
from datadistill.utils.errors import RequestError, brief
from datadistill.utils.progress import Bar


@dataclass(frozen=True, eq=False)
class Collected:
    """Content of datasets.

    Attributes:
        pairs: images and labels by role.
        whites: the number that was taken for white in Pillow images of more than 8 bits, if there are any.
        remarks: sentences on what 8 bits do to those.
    """

    pairs: dict[str, Pair]
    whites: tuple[int | float, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Deep:
    """A Pillow image of more than 8 bits: what is white in it, only all images together tell."""

    values: np.ndarray
    numbers: Numbers


_Image = np.ndarray | _Deep


def collect(datasets: dict[str, Dataset[Any]], name: str, options: Options, bar: Bar) -> Collected:
    """All images and labels of datasets, in order.

    Args:
        datasets: by role; each gives pairs of an image and a label.
        name: what errors call all of them.
        options: Pillow's images are brought to a size that is given; and white.
        bar: shows progress.

    Raises:
        RequestError: one of them is no such dataset; it is named by its role.
    """
    words = {role: f"{_WORDS[role]} of {name}" for role in datasets}
    items = {role: _items(dataset, words[role], options.size, bar) for role, dataset in datasets.items()}
    deep = [image for images, _ in items.values() for image in images if isinstance(image, _Deep)]
    white = options.white or (white_of_whole([image.numbers for image in deep]) if deep else 255)
    pairs = {
        role: _pair([_settled(image, white, options.size) for image in images], labels, words[role])
        for role, (images, labels) in items.items()
    }
    if not deep:
        return Collected(pairs)
    pixels = [_settled(image, white, None) for image in deep]
    return Collected(pairs, (white,), tuple(remarks_on(pixels, white, [image.numbers for image in deep])))


_WORDS = {"train": "train", "held_out": "val", "test": "test"}
"""What errors call a dataset, by role."""


def _items(dataset: Dataset[Any], what: str, size: int | None, bar: Bar) -> tuple[list[_Image], list[Any]]:
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise RequestError(f"{what} is no dataset with a length and items by number, but a {type(dataset).__name__}")
    images, labels, total = list[_Image](), list[Any](), _length(dataset, what)
    if total == 0:
        raise RequestError(f"{what} is empty")
    with bar(f"reading {what}", total) as count:
        for number in range(total):
            item = _item(dataset, number, what)
            images.append(_image(item[0], size, f"image {number} of {what}"))
            label, is_array = item[1], isinstance(item[1], Tensor | np.ndarray | np.generic)
            labels.append(as_array(label, f"label {number} of {what}").tolist() if is_array else label)
            count()
    return images, labels


def _length(dataset: Any, what: str) -> int:
    try:
        return len(dataset)
    except Exception as error:  # the user's own code
        raise RequestError(f"{what} gives no length: {shown(brief(error))}") from error


def _item(dataset: Any, number: int, what: str) -> Any:
    try:
        item = dataset[number]
    except Exception as error:  # the user's own code
        raise RequestError(f"item {number} of {what} cannot be read: {shown(brief(error))}") from error
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise RequestError(f"item {number} of {what} is no pair of an image and a label")
    return item


def _pair(images: list[np.ndarray], labels: list[Any], what: str) -> Pair:
    types = {"floats" if image.dtype.kind == "f" else str(image.dtype) for image in images}
    for differ, kinds in (("shapes", {image.shape for image in images}), ("types", types)):
        if len(kinds) > 1:
            some = sorted(map(str, kinds))
            raise RequestError(
                f"the images of {what} have several {differ}, {some[0]} and {some[-1]} among them: let the dataset "
                f"{'resize' if differ == 'shapes' else 'convert'} them, or give Pillow images and a size"
            )
    try:
        return Named(f"images of {what}", np.stack(images)), Named(f"labels of {what}", np.asarray(labels))
    except ValueError as error:
        raise RequestError(f"the labels of {what} have several shapes: one label is needed for each image") from error


def _image(image: Any, size: int | None, what: str) -> _Image:
    """One image as [H, W] or [H, W, C]; of Pillow's with more than 8 bits, its numbers."""
    if isinstance(image, Image.Image):
        try:
            values = deep_values(image)
            if values is not None:
                return _Deep(values, numbers_of(values, what))
            return np.asarray(upright(image)) if size is None else fitted(upright(image), size, 3)
        except Exception as error:  # Pillow decodes only now, and raises anything at all on damaged bytes
            raise RequestError(f"{what} cannot be read: {shown(brief(error))}") from error
    if isinstance(image, Tensor | np.ndarray):
        plain = as_array(image, what)
        is_first = isinstance(image, Tensor) and plain.ndim == 3 and plain.shape[0] in (1, 3, 4)
        return plain.transpose(1, 2, 0) if is_first else plain
    raise RequestError(f"{what} is a {type(image).__name__}, but must be a tensor, an array or a Pillow image")


def _settled(image: _Image, white: int | float, size: int | None) -> np.ndarray:
    """One image in 8 bits, now that white is known."""
    if not isinstance(image, _Deep):
        return image
    picture = shallow(image.values, white)
    return np.asarray(picture) if size is None else fitted(picture, size, 3)

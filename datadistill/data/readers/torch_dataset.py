"""`torch.utils.data.Dataset`s become arrays."""

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from datadistill.data.arrays import Named, Pair
from datadistill.data.readers.image_files import to_pixels, upright
from datadistill.utils.errors import RequestError
from datadistill.utils.progress import Bar


def collect(dataset: Dataset[Any], what: str, size: int | None, bar: Bar) -> Pair:
    """All images and labels of a dataset, in order.

    Args:
        dataset: gives pairs of an image and a label.
        what: what errors call it.
        size: Pillow's images are brought to this size, if it is given.
        bar: shows progress.

    Raises:
        RequestError: it is no such dataset.
    """
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise RequestError(f"{what} is no dataset with a length and items by number")
    images, labels, total = list[np.ndarray](), list[Any](), len(dataset)
    if total == 0:
        raise RequestError(f"{what} is empty")
    with bar(f"reading {what}", total) as count:
        for number in range(total):
            item = dataset[number]
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise RequestError(f"item {number} of {what} is no pair of an image and a label")
            images.append(_image(item[0], size, f"image {number} of {what}"))
            labels.append(item[1].tolist() if isinstance(item[1], Tensor | np.ndarray | np.generic) else item[1])
            count()
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise RequestError(
            f"the images of {what} have several shapes, {min(shapes)} and {max(shapes)} among them: let the dataset "
            "resize them, or give Pillow images and a size"
        )
    try:
        return Named(f"images of {what}", np.stack(images)), Named(f"labels of {what}", np.asarray(labels))
    except ValueError as error:
        raise RequestError(f"the labels of {what} have several shapes: one label is needed for each image") from error


def _image(image: Any, size: int | None, what: str) -> np.ndarray:
    """One image as [H, W] or [H, W, C]."""
    if isinstance(image, Image.Image):
        return np.asarray(upright(image)) if size is None else to_pixels(image, size, 3)
    if isinstance(image, Tensor):
        plain = image.detach().cpu().numpy()
        return plain.transpose(1, 2, 0) if plain.ndim == 3 and plain.shape[0] in (1, 3, 4) else plain
    if isinstance(image, np.ndarray):
        return image
    raise RequestError(f"{what} is a {type(image).__name__}, but must be a tensor, an array or a Pillow image")

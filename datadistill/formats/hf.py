"""A Hugging Face dataset folder, as `datasets.load_from_disk` reads it: exact float images and class names.

It needs the library `datasets`, which comes with the extra `hf`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from datadistill.data.readers.huggingface import check_entries, check_inside, column_of, library
from datadistill.distilled import DistilledData
from datadistill.formats.base import Foreign, take_images, take_labels, whole_folder
from datadistill.formats.png import picture_in
from datadistill.formats.sidecar import read_sidecar, restore, write_sidecar
from datadistill.utils.errors import DamagedFileError, RequestError, reason_of, require


def write_hf(distilled: DistilledData, path: Path) -> None:
    """Columns `image` (float32 [C, H, W], as the network is fed) and `label`; the rest is JSON beside them.

    Raises:
        RequestError: the library is not installed, or takes no such class names.
    """
    datasets = library(str(path))
    arrays = distilled.as_arrays()
    shape = arrays["images"].shape[1:]
    try:
        features = datasets.Features(
            image=datasets.Array3D(shape, "float32"),
            label=datasets.ClassLabel(names=list(distilled.provenance.classes)),
        )
    except ValueError as error:
        raise RequestError(f"Hugging Face takes no such class names: {error}") from error
    # From files that are closed again: the library keeps what it maps.
    table = datasets.Dataset.from_dict({"image": list(arrays["images"]), "label": arrays["labels"]}, features=features)
    with whole_folder(path) as folder:
        table.save_to_disk(str(folder))
        write_sidecar(distilled, folder)


def read_hf(path: Path) -> list[Foreign | DistilledData]:
    """The folder's one set: ours, or any with float or 8-bit images in `image` and classes in `label`.

    Raises:
        RequestError: the library is not installed.
        DamagedFileError: the folder is damaged, or holds something else.
    """
    datasets = library(str(path))
    check_entries(path)
    try:
        check_inside(path)
        table = datasets.load_from_disk(str(path))
        require(isinstance(table, datasets.Dataset), "it holds several splits: name the folder of one")
        kinds, rows = table.features, len(table)
        require({"image", "label"} <= kinds.keys(), "it has no columns image and label")
        require(rows > 0, "it is empty")
        labels, names = np.array(column_of(table, "label")), getattr(kinds["label"], "names", None)
        require(labels.dtype.kind in "biuf", f"its labels are {type(kinds['label']).__name__}, not numbers")
        pictures = _pictures(table, kinds["image"])
        images = np.stack([picture[..., None] if picture.ndim == 2 else picture for picture in pictures])
    except DamagedFileError:
        raise
    except Exception as error:  # of the library, or of what it reads
        raise DamagedFileError(f"{path} is damaged or no Hugging Face dataset folder: {reason_of(error)}") from error
    indices, _ = take_labels(torch.from_numpy(labels), "the labels")
    if images.dtype == np.uint8:
        return [Foreign(None, indices, pixels=torch.from_numpy(images), classes=_tuple(names))]
    found, about = take_images(torch.from_numpy(images), "the images"), read_sidecar(path)
    return [Foreign(found, indices, classes=_tuple(names)) if about is None else restore(about, found, indices)]


def _pictures(table: Any, kind: Any) -> list[np.ndarray]:
    """The column of images; nothing is opened that the table names, and only what we know is decoded."""
    if type(kind).__name__ != "Image":
        require(_is_numbers(kind), f"its images are {type(kind).__name__}, not numbers or pictures")
        return [np.array(image) for image in table.with_format("numpy")["image"]]
    found = []
    for number, value in enumerate(column_of(table, "image")):
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise DamagedFileError(f"image {number} is not in it, but named as a file elsewhere")
        found.append(picture_in(content, f"image {number}"))
    return found


def _is_numbers(kind: Any) -> bool:
    """Whether the library makes numbers of a column, and does not open or decode anything."""
    inner = kind if isinstance(kind, list) else [kind.feature] if hasattr(kind, "feature") else []
    plain = ("Value", "Array2D", "Array3D", "Array4D", "Array5D")
    return all(map(_is_numbers, inner)) if inner else type(kind).__name__ in plain


def _tuple(names: Any) -> tuple[str, ...] | None:
    return tuple(map(str, names)) if names else None

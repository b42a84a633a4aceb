"""NPZ: every tensor as a NumPy array by its name in our own file, and the provenance as JSON text. It loses nothing.

Files of others need `images` [N, C, H, W] and `labels`.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datadistill.data.readers.npz import opened, read_array
from datadistill.distilled import DistilledData, parse_distilled
from datadistill.formats.base import Foreign, take_pair
from datadistill.utils.errors import require
from datadistill.utils.files import write_atomically

_KEY = "datadistill"


def write_npz(distilled: DistilledData, path: Path) -> None:
    """All of the data."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {**distilled.as_arrays(), _KEY: np.array(distilled.header())}
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def read_npz(path: Path) -> list[Foreign | DistilledData]:
    """The one set.

    Raises:
        DamagedFileError: the file is damaged, or holds something else.
    """
    with opened(path) as archive:
        arrays = {info.filename.removesuffix(".npy"): read_array(archive, info, path) for info in archive.infolist()}
    about = arrays.pop(_KEY, None)
    for name, array in arrays.items():
        require(array.dtype.kind in "fiu" and array.dtype.isnative, f"'{name}' is of type {array.dtype}")
        require(array.dtype.itemsize <= 8, f"'{name}' is of type {array.dtype}")
    tensors = {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}
    if about is not None:
        require(about.dtype.kind == "U" and about.size == 1, f"'{_KEY}' is not text")
        return [parse_distilled(tensors, {_KEY: str(about.reshape(()))})]
    for name in ("images", "labels"):
        require(name in tensors, f"the array '{name}' is missing")
    images, labels, soft = take_pair(tensors["images"], tensors["labels"])
    return [Foreign(images, labels, soft_labels=soft)]

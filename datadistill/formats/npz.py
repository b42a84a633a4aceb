"""NPZ: every tensor as a NumPy array by its name in our own file, and the provenance as JSON text. It loses nothing.

Files of others need `images` [N, C, H, W] and `labels`.
"""

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datadistill.distilled import DistilledData, parse_distilled
from datadistill.formats.base import Foreign, take_images, take_labels
from datadistill.utils.errors import DamagedFileError, explain_os_error, require
from datadistill.utils.files import write_atomically

_KEY = "datadistill"
_SMALL, _EXPANDS = 1 << 26, 100


def write_npz(distilled: DistilledData, path: Path) -> None:
    """All of the data."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {**distilled.as_arrays(), _KEY: np.array(distilled.header())}
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def read_npz(path: Path) -> list[Foreign | DistilledData]:
    """The one set."""
    arrays = read_arrays(path)
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
    labels, soft = take_labels(tensors["labels"], "the labels")
    images = take_images(tensors["images"], "the images")
    require(len(images) == len(labels), f"there are {len(images)} images and {len(labels)} labels")
    return [Foreign(images, labels, soft_labels=soft)]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an NPZ; no object is unpickled, and no size is believed that the file cannot hold.

    Raises:
        DamagedFileError: it is damaged, or claims more than it holds.
        DatadistillError: it cannot be read at all.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries, size = archive.infolist(), path.stat().st_size
            total = sum(entry.file_size for entry in entries)
            require(total <= max(_SMALL, _EXPANDS * size), f"its {size:,} bytes claim to become {total:,}")
            return {entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in entries}
    except OSError as error:
        raise explain_os_error(error, f"read {path}") from error
    except DamagedFileError:
        raise
    except Exception as error:  # a damaged archive can fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DamagedFileError(f"it is damaged or no NPZ ({reason})") from error


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        require(version in readers, f"'{entry.filename}' is of an unknown version")
        shape, _, dtype = readers[version](file)
        require(not dtype.hasobject, f"'{entry.filename}' holds pickled objects, which are not read")
        claimed = math.prod(shape) * dtype.itemsize
        require(file.tell() + claimed == entry.file_size, f"'{entry.filename}' claims {claimed:,} bytes it has not")
    with archive.open(entry) as file:
        found = np.lib.format.read_array(file, allow_pickle=False)
    assert isinstance(found, np.ndarray)
    return found

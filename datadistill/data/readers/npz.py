"""NPZ files: arrays that are believed only as far as the file goes."""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from datadistill.data.arrays import Named, Pair, read_arrays
from datadistill.data.options import Options, check_room
from datadistill.data.readers.image_files import shown
from datadistill.data.readers.layout import joined
from datadistill.data.splits import Splits
from datadistill.utils.errors import DamagedFileError, DatadistillError, RequestError, reason_of

_IMAGES = ("x_{}", "{}_images", "{}_x", "{}_data")
_LABELS = ("y_{}", "{}_labels", "{}_y", "{}_targets")
_ROLES = {"train": ("train",), "held_out": ("val", "valid", "validation"), "test": ("test",)}
_ALONE = (("x", "y"), ("images", "labels"), ("data", "labels"), ("data", "targets"))
_CLASSES = ("classes", "class_names", "label_names")

_MOST_HEADER = 10_000
_RATIO, _SMALL = 100, 2**28
"""What is stored may become so many times as large, where it becomes larger than a quarter of a gigabyte."""


def read_npz(path: Path, options: Options) -> Splits:
    """The splits of an NPZ file.

    Args:
        path: the file; `x_train`, `y_train`, `x_test`, `y_test` in it, or the same in other words.
        options: size and channels.

    Raises:
        RequestError: it lacks arrays, or they are no images and labels.
        DamagedFileError: it is damaged, claims more than it holds, or holds objects.
    """
    with opened(path) as archive:
        members = {name.removesuffix(".npy").lower(): info for info in archive.infolist() if (name := info.filename)}
        names = _names(members, path)
        arrays = {name: read_array(archive, members[name], path) for pair in names.values() for name in pair}
        listed = next((name for name in _CLASSES if name in members), None)
        classes = None if listed is None else read_array(archive, members[listed], path)
    pairs: dict[str, Pair] = {}
    for role, (images, labels) in names.items():
        pairs[role] = (Named(f"'{images}' of {path}", arrays[images]), Named(f"'{labels}' of {path}", arrays[labels]))
    found = read_arrays(str(path), pairs, None if classes is None else _class_names(classes, path), options)
    unused = sorted(members.keys() - {name for pair in names.values() for name in pair} - {listed})
    return replace(found, remarks=(*found.remarks, f"{joined(unused)} of {path} passed over")) if unused else found


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """An NPZ file to read from.

    Raises:
        DamagedFileError: it is none, or something goes wrong in between.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DatadistillError:
        raise
    except Exception as error:  # whatever zipfile, its decompressors and numpy raise on damaged bytes
        raise DamagedFileError(f"{path} is damaged or no NPZ file: {shown(reason_of(error))}") from error


def _names(members: dict[str, zipfile.ZipInfo], path: Path) -> dict[str, tuple[str, str]]:
    """The names of images and labels, by role."""
    found = {}
    for role, words in _ROLES.items():
        images = [name for word in words for form in _IMAGES if (name := form.format(word)) in members]
        labels = [name for word in words for form in _LABELS if (name := form.format(word)) in members]
        if images and labels:
            found[role] = (images[0], labels[0])
        elif images or labels:
            lacking, present = ("labels", images[0]) if images else ("images", labels[0])
            raise RequestError(f"{path} has '{present}', but no {lacking} for it")
    if "train" not in found:
        alone = next((pair for pair in _ALONE if set(pair) <= members.keys()), None)
        if alone is None or found:
            have = shown(", ".join(sorted(members)))
            raise RequestError(
                f"{path} has no 'x_train' and 'y_train' (or 'train_images' and 'train_labels', or 'x' and 'y'); it has "
                f"{have or 'nothing'}"
            )
        found["train"] = alone
    return found


def read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    """One array, once its header, the archive's word and the size of the file agree.

    Raises:
        DamagedFileError: they do not, or it holds objects.
        RequestError: memory has no room for it.
    """
    name = f"'{shown(info.filename)}' of {path}"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        raise DamagedFileError(f"{name} is encrypted or compressed in an unknown way")
    if info.compress_size > path.stat().st_size:
        raise DamagedFileError(f"{name} claims {info.compress_size:,} bytes, more than the file has")
    if info.file_size > max(_SMALL, _RATIO * info.compress_size):
        raise DamagedFileError(f"{name} claims to become {info.file_size:,} bytes from {info.compress_size:,}: refused")
    with archive.open(info) as file:
        shape, dtype = _header(file, name)
        count = math.prod(shape)
        if count * dtype.itemsize != info.file_size - file.tell():
            raise DamagedFileError(
                f"{name} claims the shape {shape!s:.60} of {dtype}, but {info.file_size - file.tell():,} bytes follow"
            )
        if not count or not dtype.itemsize:
            raise DamagedFileError(f"{name} is empty: {dtype} of {shape!s:.60}")
        check_room(str(path), count + count * dtype.itemsize // 6)
        file.seek(0)
        return npy.read_array(file, allow_pickle=False, max_header_size=_MOST_HEADER)


def _header(file: Any, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type that an array claims, from an open file."""
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise DamagedFileError(f"{name} is of version {version} of NumPy's format, which holds no plain numbers")
    shape, _, dtype = read(file, max_header_size=_MOST_HEADER)
    if dtype.hasobject:
        raise DamagedFileError(f"{name} holds Python objects, which could run anything: they are never read")
    if dtype.names is not None or dtype.subdtype is not None or len(shape) > 8 or any(edge < 0 for edge in shape):
        raise DamagedFileError(f"{name} is no plain array: {dtype!s:.60} of {shape!s:.60}")
    return shape, dtype


def _class_names(values: np.ndarray, path: Path) -> list[Any]:
    if values.ndim != 1 or values.dtype.kind not in "USiu":
        raise RequestError(f"the class names of {path} are {values.dtype} of shape {values.shape}, but must be text")
    names: list[Any] = values.tolist()
    return names

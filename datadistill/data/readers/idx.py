"""The IDX format of MNIST's official files (gzipped; 8-bit unsigned only)."""

import gzip
import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from datadistill.data.labelled import Counts, Labelled, check_sha256, damaged, read_bytes
from datadistill.utils.errors import DamagedFileError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, sha256: str, shape: tuple[int, ...]) -> UInt8[Tensor, "..."]:
    """An official file, checked against its checksum before it is unpacked.

    Args:
        path: the gzipped file.
        sha256: the official file's checksum, hexadecimal.
        shape: the array's shape.

    Raises:
        DamagedFileError: truncated, altered, or another file.
        DatadistillError: it cannot be read at all.
    """
    packed = read_bytes(path, _most(shape))
    if hashlib.sha256(packed).hexdigest() != sha256:
        raise DamagedFileError(f"{path} is damaged or not the official file (its SHA-256 differs): get it again")
    return _unpack(packed, shape, path)


def read_idx_pairs(
    paths: tuple[Path, ...], sha256: tuple[str, ...], counts: tuple[Counts, Counts], size: int
) -> tuple[Labelled, Labelled]:
    """A training and a test split in four files, each compressed by whomever.

    Args:
        paths: training images and labels, test images and labels.
        sha256: the checksums of what is in them once unpacked, hexadecimal.
        counts: images of each class in each split.
        size: height and width of an image.

    Raises:
        DamagedFileError: truncated, altered, or another file.
        DatadistillError: it cannot be read at all.
    """
    arrays = []
    for index, (path, checksum) in enumerate(zip(paths, sha256, strict=True)):
        count = sum(counts[index // 2])
        shape = (count,) if index % 2 else (count, size, size)
        arrays.append(_unpack(read_bytes(path, _most(shape)), shape, path, checksum))
    train_images, train_labels, test_images, test_labels = arrays
    train = Labelled(train_images[..., None], train_labels.long()).checked(counts[0], paths[1])
    return train, Labelled(test_images[..., None], test_labels.long()).checked(counts[1], paths[3])


def _unpack(packed: bytes, shape: tuple[int, ...], path: Path, sha256: str | None = None) -> UInt8[Tensor, "..."]:
    """The array in a gzipped file; `sha256` is of the unpacked file."""
    header = struct.pack(f">HBB{len(shape)}I", 0, _UNSIGNED_BYTE, len(shape), *shape)
    length = len(header) + int(np.prod(shape))
    try:
        # One byte more than there should be, so that a small file cannot fill the memory.
        raw = gzip.GzipFile(fileobj=io.BytesIO(packed)).read(length + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, f"it cannot be unpacked ({error})") from error
    if not raw.startswith(header) or len(raw) != length:
        raise damaged(path, f"it does not hold {shape} unsigned bytes")
    if sha256 is not None:
        check_sha256(raw, sha256, path)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=len(header)).reshape(shape).copy())


def _most(shape: tuple[int, ...]) -> int:
    """As large as a packed file can reasonably be: gzip adds little to what it cannot compress."""
    return int(np.prod(shape)) * 2 + 4096

"""The IDX format of MNIST's files and those after its pattern (8-bit unsigned only), gzipped or not."""

import gzip
import io
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from datadistill.data.arrays import Named, Pair, read_arrays
from datadistill.data.labelled import Counts, Labelled, check_digest, damaged, read_bytes
from datadistill.data.options import Options, check_room
from datadistill.data.readers.image_files import shown
from datadistill.data.readers.layout import ROLES, joined
from datadistill.data.splits import Splits
from datadistill.utils.errors import DamagedFileError, RequestError, require

_UNSIGNED_BYTE = 0x08
_GZIP = b"\x1f\x8b"
_NAME = re.compile(r"(.*?)[-.]?(images|labels)[-.]idx[13][-.]ubyte(?:\.gz)?", re.IGNORECASE)
_RATIO, _SMALL = 100, 2**28
"""What is packed may become so many times as large, where it becomes larger than a quarter of a gigabyte."""


def is_idx(folder: Path) -> bool:
    """Whether IDX files lie in a folder, or in `raw/` below it, where torchvision puts them."""
    return bool(_files(folder))


def read_idx_folder(folder: Path, options: Options) -> Splits:
    """The splits of IDX files of one's own, such as KMNIST and EMNIST, in their order.

    Args:
        folder: with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, and `t10k-` or `test-` likewise, packed or
            not; or with `raw/`, which has them.
        options: size, channels and white.

    Raises:
        RequestError: a file is missing, or there are several datasets.
        DamagedFileError: a file is damaged, or claims more than it holds.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in _files(folder):
        prefix, kind = _NAME.fullmatch(path.name).groups()  # type: ignore[union-attr]
        found.setdefault(prefix.lower(), {}).setdefault(kind.lower(), path)
    roles = {prefix: _role(prefix) for prefix in found}
    if sorted(set(roles.values())) != sorted(roles.values()) or "train" not in roles.values():
        raise RequestError(
            f"{folder} has IDX files of {shown(joined(sorted(found)))}: one training split is needed, train-images and "
            "train-labels, and one of each other at most"
        )
    pairs: dict[str, Pair] = {}
    for prefix, files in found.items():
        if len(files) < 2:
            lacking = "labels" if "images" in files else "images"
            raise RequestError(f"{folder} has {shown(next(iter(files.values())).name)}, but no {lacking} for it")
        images, labels = (Named(str(files[kind]), _array(files[kind])) for kind in ("images", "labels"))
        pairs[roles[prefix]] = images, labels
    return read_arrays(str(folder), pairs, None, options)


def _files(folder: Path) -> list[Path]:
    for place in (folder, folder / "raw"):
        inside = sorted(place.iterdir()) if place.is_dir() else []
        if found := [path for path in inside if _NAME.fullmatch(path.name) and path.is_file()]:
            return found
    return []


def _role(prefix: str) -> str:
    """Split by a file's name; without a word, the training split."""
    words = re.split(r"[^a-z0-9]+", prefix)
    names = {**ROLES, "test": (*ROLES["test"], "t10k")}
    return next((role for role, known in names.items() if set(known) & set(words)), "train")


def _array(path: Path) -> np.ndarray:
    """The array in a file of one's own.

    Raises:
        DamagedFileError: it is damaged, or claims more than it holds.
    """
    try:
        with path.open("rb") as raw:
            is_packed = raw.read(2) == _GZIP
        with gzip.open(path) if is_packed else path.open("rb") as file:
            head = file.read(4)
            require(head[:3] == bytes((0, 0, _UNSIGNED_BYTE)), "it does not begin as one")
            shape = struct.unpack(f">{head[3]}I", file.read(4 * head[3]))
            count = math.prod(shape)
            require(count <= max(_SMALL, _RATIO * path.stat().st_size), f"it claims {count:,} bytes")
            check_room(str(path), count)
            content = file.read(count + 1)
        require(
            len(content) == count, f"it claims {count:,} bytes, but holds {'fewer' if len(content) < count else 'more'}"
        )
    except (OSError, EOFError, zlib.error, struct.error, DamagedFileError, IndexError) as error:
        raise DamagedFileError(f"{path} is damaged or no IDX file of unsigned bytes: {error}") from error
    return np.frombuffer(content, np.uint8).reshape(shape).copy()


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


def _unpack(packed: bytes, shape: tuple[int, ...], path: Path, sha256: str) -> UInt8[Tensor, "..."]:
    """The array in a file, gzipped or not; `sha256` is of the unpacked file."""
    header = struct.pack(f">HBB{len(shape)}I", 0, _UNSIGNED_BYTE, len(shape), *shape)
    length = len(header) + int(np.prod(shape))
    try:
        # One byte more than there should be, so that a small file cannot fill the memory.
        is_packed = packed.startswith(_GZIP)
        raw = gzip.GzipFile(fileobj=io.BytesIO(packed)).read(length + 1) if is_packed else packed
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, f"it cannot be unpacked ({error})") from error
    if not raw.startswith(header) or len(raw) != length:
        raise damaged(path, f"it does not hold {shape} unsigned bytes")
    check_digest(raw, sha256, path)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=len(header)).reshape(shape).copy())


def _most(shape: tuple[int, ...]) -> int:
    """Upper bound of a packed file's bytes: gzip adds little to what it cannot compress."""
    return int(np.prod(shape)) * 2 + 4096

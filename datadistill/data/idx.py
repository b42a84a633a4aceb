"""The IDX format of MNIST's official files (gzipped; 8-bit unsigned only)."""

import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from datadistill.errors import DamagedFileError, explain_os_error

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
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise explain_os_error(error, "read a dataset file") from error
    if hashlib.sha256(packed).hexdigest() != sha256:
        raise DamagedFileError(f"{path} is damaged or not the official file (its SHA-256 differs): get it again")
    try:
        raw = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:  # pragma: no cover - the checksum comes first
        raise DamagedFileError(f"{path} cannot be unpacked: get it again") from error
    header = struct.pack(f">HBB{len(shape)}I", 0, _UNSIGNED_BYTE, len(shape), *shape)
    if not raw.startswith(header) or len(raw) - len(header) != int(np.prod(shape)):
        raise DamagedFileError(f"{path} does not hold {shape} unsigned bytes: get it again")
    array = np.frombuffer(raw, np.uint8, offset=len(header)).reshape(shape)
    return torch.from_numpy(array.copy())

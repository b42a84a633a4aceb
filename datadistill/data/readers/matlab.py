"""SVHN's cropped digits as MATLAB files: `X` (height, width, channel, image) and `y`, in which 10 is the digit 0."""

import io
from pathlib import Path

import numpy as np
import torch

from datadistill.data.labelled import Counts, Labelled, check_digest, damaged, read_bytes

_ZERO = 10


def read_matlab(
    paths: tuple[Path, ...], md5: tuple[str, ...], counts: tuple[Counts, Counts], size: int
) -> tuple[Labelled, Labelled]:
    """A training and a test split, each checked against its checksum before it is parsed.

    The order matters: scipy's parser is not made for altered files, some of which end the whole process.

    Args:
        paths: the training and the test file.
        md5: their checksums.
        counts: images of each digit in each split.
        size: height and width of an image.

    Raises:
        DamagedFileError: truncated, altered, or another file.
        DatadistillError: it cannot be read at all.
    """
    parts = []
    for path, checksum, part in zip(paths, md5, counts, strict=True):
        raw = read_bytes(path, sum(part) * (size * size * 3 + 1) * 2 + 4096)
        check_digest(raw, checksum, path)
        parts.append(_parse(raw, part, size, path))
    return parts[0], parts[1]


def _parse(raw: bytes, counts: Counts, size: int, path: Path) -> Labelled:
    """The images in a file's content; `path` is what an error names."""
    from scipy.io import loadmat

    try:
        content = loadmat(io.BytesIO(raw), variable_names=("X", "y"))
        pixels, targets = content["X"], content["y"].reshape(-1)
    except Exception as error:  # scipy's parser raises whatever it comes upon
        raise damaged(path, "it is not a MATLAB file with X and y") from error
    count = sum(counts)
    if pixels.shape != (size, size, 3, count) or pixels.dtype != np.uint8:
        raise damaged(path, f"X does not hold {count:,} images of {size}x{size} pixels")
    if (
        targets.shape != (count,)
        or targets.dtype.kind not in "iuf"
        or not np.isin(targets, np.arange(1, _ZERO + 1)).all()
    ):
        raise damaged(path, f"y does not hold {count:,} labels from 1 to {_ZERO}")
    labels = torch.from_numpy(targets.astype(np.int64) % _ZERO)
    images = np.ascontiguousarray(pixels.transpose(3, 0, 1, 2))
    return Labelled(torch.from_numpy(images), labels).checked(counts, path)

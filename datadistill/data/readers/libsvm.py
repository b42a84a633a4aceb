"""USPS as LIBSVM's text files: `LABEL 1:VALUE 2:VALUE ...`, compressed with bzip2."""

import bz2
import io
from pathlib import Path

import numpy as np
import torch

from datadistill.data.labelled import Counts, Labelled, damaged, read_bytes

_TEXT_PER_VALUE = 32
"""Characters that an index, a value and what separates them can reasonably take."""


def read_libsvm(paths: tuple[Path, ...], counts: tuple[Counts, Counts], size: int) -> tuple[Labelled, Labelled]:
    """A training and a test split; labels count from 1, and values from -1 (background) to 1 (ink) become 8 bit.

    Args:
        paths: the training and the test file.
        counts: images of each class in each split.
        size: height and width of an image.

    Raises:
        DamagedFileError: truncated, altered, or another file.
        DatadistillError: it cannot be read at all.
    """
    train, test = (_read(path, part, size) for path, part in zip(paths, counts, strict=True))
    return train, test


def _read(path: Path, counts: Counts, size: int) -> Labelled:
    from sklearn.datasets import load_svmlight_file

    count, width = sum(counts), size * size
    most = count * (width + 1) * _TEXT_PER_VALUE
    try:
        # One byte more than there may be, so that a small file cannot fill the memory.
        text = bz2.BZ2File(io.BytesIO(read_bytes(path, most))).read(most + 1)
    except (OSError, EOFError, ValueError) as error:
        raise damaged(path, f"it cannot be unpacked ({error})") from error
    if len(text) > most:
        raise damaged(path, f"it unpacks to more than {most:,} bytes")
    try:
        rows, targets = load_svmlight_file(io.BytesIO(text), n_features=width, zero_based=False)
    except (ValueError, OverflowError) as error:
        raise damaged(path, "it is not in LIBSVM's format") from error
    # The parser refuses an index twice in a row: where there are as many values as there can be, none is missing.
    if rows.shape[0] != count or rows.nnz != count * width:
        raise damaged(path, f"it does not hold {count:,} images of {width} values")
    if not (np.abs(rows.data) <= 1).all():
        raise damaged(path, "its values are not between -1 and 1")
    if not np.isin(targets, np.arange(1, len(counts) + 1)).all():
        raise damaged(path, f"its labels are not 1 to {len(counts)}")
    pixels = np.rint((rows.data + 1) * 127.5).astype(np.uint8).reshape(count, size, size, 1)
    return Labelled(torch.from_numpy(pixels), torch.from_numpy(targets.astype(np.int64) - 1)).checked(counts, path)

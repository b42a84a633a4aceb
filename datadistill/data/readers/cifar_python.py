"""CIFAR's Python version, which is pickles, read without running anything that a pickle asks for.

A file is parsed only if it is the official one to the byte. Even then the names that it mentions lead to stand-ins that
keep what they are told: neither numpy's own reconstruction nor anything else is called.
"""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datadistill.data.labelled import Counts, Labelled, check_digest, damaged, read_bytes
from datadistill.data.readers.cifar import PIXELS, from_planes


@dataclass(frozen=True)
class Python:
    """Layout of a CIFAR in the Python version.

    Attributes:
        train: the files of the training split.
        test: the file of the test split.
        key: what the classes are called in them.
        counts: images of each class in each split.
        md5: checksums of the files, training first.
    """

    train: tuple[str, ...]
    test: str
    key: bytes
    counts: tuple[Counts, Counts]
    md5: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All files, the test split's last."""
        return (*self.train, self.test)

    def read(self, paths: tuple[Path, ...]) -> tuple[Labelled, Labelled]:
        """A training and a test split from files, in the order of `names`.

        Raises:
            DamagedFileError: truncated, altered, or another file.
            DatadistillError: it cannot be read at all.
        """
        most = 4096 + 2 * PIXELS * max(map(sum, self.counts))
        parts = []
        for path, md5 in zip(paths, self.md5, strict=True):
            raw = read_bytes(path, most)
            check_digest(raw, md5, path)
            parts.append(parse_batch(raw, self.key, path))
        planes, labels = (np.concatenate(arrays) for arrays in zip(*parts[:-1], strict=True))
        train = from_planes(planes, labels).checked(self.counts[0], paths[0].parent)
        return train, from_planes(*parts[-1]).checked(self.counts[1], paths[-1])


def parse_batch(raw: bytes, key: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The rows of pixels and the labels in a file's content; `path` is what an error names.

    Raises:
        DamagedFileError: it is not a pickle of such arrays.
    """
    try:
        batch = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
        rows, labels = _array(batch[b"data"]), np.array(batch[key], np.int64)
    except Exception as error:  # a damaged pickle raises whatever it comes upon
        raise damaged(path, f"it is not a batch of CIFAR ({error})") from error
    if labels.shape != (len(rows),):
        raise damaged(path, "it has not one label for each image")
    return rows, labels


class _Array:
    """Stand-in for NumPy's array, which keeps its state."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype:
    """Stand-in for NumPy's dtype, which keeps its name."""

    def __init__(self, name: bytes, *rest: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
    """Unpickler that knows the stand-ins and no other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _STAND_INS[module, name]


def _array(stand_in: _Array) -> np.ndarray:
    """Rows of unsigned bytes from an array's state: version, shape, dtype, whether columns come first, bytes."""
    _, shape, dtype, columns_first, content = stand_in.state
    if dtype.name != b"u1" or columns_first or shape[1:] != (PIXELS,):
        raise ValueError("its data are not rows of unsigned bytes")
    # A copy, because what is in a bytes object cannot be written to.
    return np.frombuffer(content, np.uint8).reshape(shape).copy()

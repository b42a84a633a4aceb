"""PyTorch's own files. They are pickles: nothing in them is executed, and no size in them is believed."""

import io
import pickle
import pickletools
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datadistill.utils.errors import DamagedFileError, brief, explain_os_error, require
from datadistill.utils.files import write_atomically

_WHOLE_NUMBERS = {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4"}
_LEGACY_HEAD = 3
"""Pickles before the one that matters, in files of PyTorch before 1.6."""


def write_pickle(path: Path, content: Any) -> None:
    """Write a file as `torch.save` does, atomically."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def read_pickle(path: Path) -> Any:
    """Read a file of `torch.save` with `weights_only=True`: tensors, numbers, text, lists and dicts.

    Raises:
        DamagedFileError: it is damaged, claims more than it holds, or asks for code to be run.
        DatadistillError: it cannot be read at all.
    """
    try:
        _check_sizes(path)
        # Accuracies beside the images are NumPy's numbers in older files; they are read without NumPy's help.
        numbers = [(_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
        with torch.serialization.safe_globals([*numbers, (_Kind, "numpy.dtype")]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise explain_os_error(error, f"read {path}") from error
    except DamagedFileError as error:
        raise DamagedFileError(f"{path} is damaged or no file of PyTorch: {error}") from error
    except pickle.UnpicklingError as error:
        raise DamagedFileError(
            f"{path} is refused: reading it would run code, or it is damaged; only tensors, numbers, text, lists and "
            "dicts are read from a pickle"
        ) from error
    except Exception as error:  # a pickle can make its reader fail in any way
        raise DamagedFileError(f"{path} is damaged or no file of PyTorch: {brief(error)}") from error


def _check_sizes(path: Path) -> None:
    """Refuse sizes that the file cannot hold, before memory is taken for them."""
    size = path.stat().st_size
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        if not is_archive:
            for _ in range(_LEGACY_HEAD):
                _skip(file)
            _check_pickle(file, size)
            return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        require(all(entry.compress_type == zipfile.ZIP_STORED for entry in entries), "an entry is compressed")
        require(sum(entry.file_size for entry in entries) <= size, "its entries claim more than the file holds")
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                with archive.open(entry) as inner:
                    _check_pickle(inner, size)


def _skip(file: Any) -> None:
    for _ in pickletools.genops(file):
        pass


def _check_pickle(file: Any, size: int) -> None:
    """Sizes, strides and offsets are the whole numbers of a pickle; none is above the bytes there are."""
    total = 0
    for code, argument, _ in pickletools.genops(file):
        if code.name in _WHOLE_NUMBERS and argument is not None:
            total += abs(int(argument))
            require(total <= 16 * size + 10_000, "its tensors claim more than the file holds")


class _Kind:
    """Stand-in for NumPy's dtype in old files."""

    def __init__(self, name: str, *rest: object) -> None:
        self.name = str(name)

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, which a single number does not need."""


def _number(kind: _Kind, content: bytes = b"") -> float:
    """Stand-in for NumPy's function that makes a number from bytes."""
    require(kind.name in ("f4", "f8", "i4", "i8") and isinstance(content, bytes), "a number is of an unknown kind")
    require(len(content) == int(kind.name[1]), "a number is of the wrong length")
    return float(np.frombuffer(content, "<" + kind.name)[0])

"""Real datasets: `load(name)` gives RealData."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datadistill.data.bundled import digits, mnist
from datadistill.data.real import RealData, Split
from datadistill.data.transforms import Normalization
from datadistill.errors import RequestError
from datadistill.registry import Registry

__all__ = ["DATASETS", "DatasetInfo", "Normalization", "RealData", "Split", "load"]


@dataclass(frozen=True)
class DatasetInfo:
    """A dataset with a name.

    Attributes:
        name: what people type.
        line: one line of explanation.
        read: reads it, from a folder of official files where one is given.
    """

    name: str
    line: str
    read: Callable[[Path | None], RealData]


DATASETS = Registry(
    "dataset",
    (
        DatasetInfo("mnist", "60,000 + 10,000 handwritten digits, 28x28 grey, in this package", mnist),
        DatasetInfo("digits", "1,797 handwritten digits, 8x8 grey, from scikit-learn", digits),
    ),
)


def load(name: str, data_root: str | Path | None = None) -> RealData:
    """A dataset by name, on the CPU.

    Args:
        name: one of `datadistill list datasets`, in any case.
        data_root: where official files lie; the environment variable `DATADISTILL_DATA` without it.

    Raises:
        RequestError: there is no such dataset, or no such folder.
        DamagedFileError: a file does not match its checksum.
    """
    root = data_root if data_root is not None else os.environ.get("DATADISTILL_DATA")
    info = DATASETS.get(name)
    if root and not Path(root).is_dir():
        raise RequestError(f"there is no folder {root} to read datasets from")
    return info.read(Path(root) if root else None)

"""Real datasets: `load(name)` gives RealData."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datadistill.data.bundled import digits, mnist, mnist_rgb
from datadistill.data.catalogue import (
    CIFAR_10_FILES,
    CIFAR_100_FILES,
    FASHION_FILES,
    SVHN_FILES,
    USPS_FILES,
    cifar_10,
    cifar_100,
    fashion_mnist,
    svhn,
    usps,
    usps_16,
)
from datadistill.data.download import Published
from datadistill.data.options import Options
from datadistill.data.own import Datasets, as_real, from_arrays, from_datasets, is_external, load_external
from datadistill.data.readers.solar import solar_cells
from datadistill.data.real import RealData, Source, Split
from datadistill.data.transforms import Normalization, Whitening
from datadistill.utils import ranks
from datadistill.utils.errors import RequestError
from datadistill.utils.fields import check_names, options_in, with_options
from datadistill.utils.progress import Bar, counting, say
from datadistill.utils.registry import Registry

__all__ = [
    "DATASETS",
    "DatasetInfo",
    "Datasets",
    "Normalization",
    "Options",
    "RealData",
    "Source",
    "Split",
    "Whitening",
    "as_real",
    "from_arrays",
    "from_datasets",
    "is_external",
    "is_here",
    "is_named",
    "load",
]


@dataclass(frozen=True)
class DatasetInfo:
    """A dataset with a name.

    Attributes:
        name: what people type.
        line: one line of explanation.
        read: reads it, from a folder of official files where one is given.
        files: which these are; None where nothing is ever fetched.
    """

    name: str
    line: str
    read: Callable[[Path | None], RealData]
    files: Published | None = None


DATASETS = Registry(
    "dataset",
    (
        DatasetInfo("mnist", "60,000 + 10,000 handwritten digits, 28x28 grey, in this package", mnist),
        DatasetInfo("digits", "1,797 handwritten digits, 8x8 grey, from scikit-learn", digits),
        DatasetInfo("solar-cells", "2,624 photographs of solar cells, 64x64 grey; package elpv-dataset", solar_cells),
        DatasetInfo("mnist-rgb", "MNIST at 32x32 with three equal channels, beside SVHN; in this package", mnist_rgb),
        DatasetInfo(
            "fashion-mnist",
            "60,000 + 10,000 pictures of clothes, 28x28 grey; official files",
            fashion_mnist,
            FASHION_FILES,
        ),
        DatasetInfo(
            "usps", "7,291 + 2,007 digits from envelopes, 16x16 grey made 28x28; official files", usps, USPS_FILES
        ),
        DatasetInfo("usps-16", "the same digits at their own size, 16x16", usps_16, USPS_FILES),
        DatasetInfo("svhn", "73,257 + 26,032 house number digits, 32x32 colour; official files", svhn, SVHN_FILES),
        DatasetInfo(
            "cifar-10",
            "50,000 + 10,000 photographs in 10 classes, 32x32 colour; official files",
            cifar_10,
            CIFAR_10_FILES,
        ),
        DatasetInfo(
            "cifar-100",
            "50,000 + 10,000 photographs in 100 classes, 32x32 colour; official files",
            cifar_100,
            CIFAR_100_FILES,
        ),
    ),
)


def is_named(name: str) -> bool:
    """Whether a dataset of this name is listed; a folder of that name is then `./NAME`."""
    return name.lower() in (known.lower() for known in DATASETS.names())


def is_here(name: str, data_root: str | Path | None = None) -> bool:
    """Whether a listed dataset can be read without fetching it."""
    files, root = DATASETS.get(name).files, data_root or os.environ.get("DATADISTILL_DATA")
    return files is None or files.is_here(Path(root) if root else None)


@with_options(options_in(Options))
def load(
    name: str | Path,
    data_root: str | Path | None = None,
    *,
    say: Callable[[str], None] = say,
    bar: Bar = counting,
    **options: Any,
) -> RealData:
    """A dataset, on the CPU.

    Args:
        name: one of `datadistill list datasets`, in any case; or data of your own (docs/your-data.md): an image folder,
            an NPZ file, a Hugging Face dataset's folder or Parquet file, or `hf:NAME`.
        data_root: where official files lie; the environment variable `DATADISTILL_DATA` without it. What is not there
            is looked for in the user's cache and else fetched into it from its authors (docs/datasets.md).
        say: is told what was inferred of data of your own; on standard error without it.
        bar: shows progress.
        **options: how images are read, by the names of the fields of `Options`:

    Raises:
        RequestError: there is no such dataset, or no such folder.
        TypeError: there is no option of that name.
        DamagedFileError: a file is not the official one, or cannot be read.
        DatadistillError: a file is missing and cannot be fetched.
    """
    if not isinstance(name, str | Path):
        raise RequestError(
            f"the dataset is a {type(name).__name__}, but load takes a name or a path: from_arrays and from_datasets "
            "take data"
        )
    if not isinstance(data_root, str | Path | None):
        raise RequestError(f"data_root is {data_root!r:.60}, but must be a folder's path")
    check_names(options, options_in(Options), "a dataset")
    return ranks.first_here(lambda: _loaded(name, data_root, say, bar, **options))


def _loaded(
    name: str | Path, data_root: str | Path | None, say: Callable[[str], None], bar: Bar, **options: Any
) -> RealData:
    zca = options.pop("zca", False)
    how = Options(**options)
    if isinstance(name, Path) or (not is_named(name) and is_external(name)):
        real = load_external(str(name), how, say, bar)
        return real.whitened(bar) if zca else real
    root = data_root if data_root is not None else os.environ.get("DATADISTILL_DATA")
    try:
        info = DATASETS.get(name)
    except RequestError as error:
        raise RequestError(f"{error}; data of your own is a folder, an .npz file or hf:NAME") from error
    if how.flags:
        flag = next(iter(how.flags)).replace("_", "-")
        raise RequestError(f"--{flag} is for data of your own, but {info.name} is read as it is")
    if root and not Path(root).is_dir():
        raise RequestError(f"there is no folder {root} to read datasets from")
    real = info.read(Path(root) if root else None)
    return real.whitened(bar) if zca else real

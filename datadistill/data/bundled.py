"""Datasets that need no download: MNIST inside this package, digits inside scikit-learn."""

from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64

from datadistill.data.classes import DIGITS
from datadistill.data.labelled import Labelled
from datadistill.data.readers.idx import read_idx_pairs
from datadistill.data.real import RealData, from_pixels, set_apart

_MNIST_CONTENT = {
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The official files, and the SHA-256 of what is in them."""
_MNIST_COUNTS = (
    (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
)


def mnist(data_root: Path | None = None) -> RealData:
    """MNIST (LeCun et al. 1998): 60,000 and 10,000 grey digits of 28x28 pixels.

    Args:
        data_root: where `mnist/` with the four official files may lie; where one of them is missing, the
            copy inside this package is read. Both must hold what the official ones do, so the pixels are the same.
    """
    return from_pixels("mnist", *_mnist(data_root), DIGITS)


def mnist_rgb(data_root: Path | None = None) -> RealData:
    """MNIST as 32x32 pixels of three equal channels, so that a network takes it and SVHN.

    Two background pixels on each side make up the size. The 2018 code that adapts from SVHN to MNIST keeps 28x28 pixels
    and lets LeNet pad them, there with the mean instead of the background.
    """
    train, test = map(_rgb, _mnist(data_root))
    return from_pixels("mnist-rgb", train, test, DIGITS)


def _mnist(data_root: Path | None) -> tuple[Labelled, Labelled]:
    folder = Path(str(resources.files("datadistill") / "data" / "mnist"))
    if data_root is not None and all((data_root / "mnist" / name).is_file() for name in _MNIST_CONTENT):
        folder = data_root / "mnist"
    paths = tuple(folder / name for name in _MNIST_CONTENT)
    return read_idx_pairs(paths, tuple(_MNIST_CONTENT.values()), _MNIST_COUNTS, 28)


def _rgb(split: Labelled) -> Labelled:
    return Labelled(F.pad(split.pixels, (0, 0, 2, 2, 2, 2)).expand(-1, -1, -1, 3), split.labels)


def digits(data_root: Path | None = None) -> RealData:
    """scikit-learn's digits: 1,797 grey digits of 8x8 pixels with 17 levels.

    The set has no official split: a stratified fifth, always the same, is the test split.
    """
    table = _digits()
    pixels = torch.from_numpy(table[:, :-1] / 16 * 255).round().to(torch.uint8).reshape(-1, 8, 8, 1)
    whole = Labelled(pixels, torch.from_numpy(table[:, -1]).long())
    return from_pixels("digits", *set_apart(whole, len(pixels) // 5, seed=1), DIGITS)


@cache
def _digits() -> Float64[np.ndarray, "n 65"]:
    """Pixels and label, a line each, from scikit-learn's file alone: to import it takes longer than to read it."""
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    return np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")

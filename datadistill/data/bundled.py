"""Datasets that need no download: MNIST inside this package, digits inside scikit-learn."""

from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F

from datadistill.data.classes import DIGITS
from datadistill.data.labelled import Labelled
from datadistill.data.readers.idx import read_idx
from datadistill.data.real import RealData, from_pixels, set_apart

_MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


def mnist(data_root: Path | None = None) -> RealData:
    """MNIST (LeCun et al. 1998): 60,000 and 10,000 grey digits of 28x28 pixels.

    Args:
        data_root: where `mnist/` with the four official files may lie; where one of them is missing, the
            copy inside this package is read. Both must match the official checksums, so the pixels are the same.
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
    if data_root is not None and all((data_root / "mnist" / name).is_file() for name in _MNIST_FILES):
        folder = data_root / "mnist"
    shapes = ((60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,))
    train_images, train_labels, test_images, test_labels = (
        read_idx(folder / name, sha256, shape)
        for (name, sha256), shape in zip(_MNIST_FILES.items(), shapes, strict=True)
    )
    train = Labelled(train_images[..., None], train_labels.long())
    return train, Labelled(test_images[..., None], test_labels.long())


def _rgb(split: Labelled) -> Labelled:
    return Labelled(F.pad(split.pixels, (0, 0, 2, 2, 2, 2)).expand(-1, -1, -1, 3), split.labels)


def digits(data_root: Path | None = None) -> RealData:
    """scikit-learn's digits: 1,797 grey digits of 8x8 pixels with 17 levels.

    The set has no official split: a stratified fifth, always the same, is the test split.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images / 16 * 255).round().to(torch.uint8)[..., None]
    whole = Labelled(pixels, torch.from_numpy(bunch.target).long())
    return from_pixels("digits", *set_apart(whole, len(pixels) // 5, seed=1), DIGITS)

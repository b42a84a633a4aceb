"""Datasets that are read from their official files."""

from functools import partial
from pathlib import Path

import torch.nn.functional as F

from datadistill.data.classes import CIFAR_10, CIFAR_100, DIGITS, FASHION
from datadistill.data.download import Layout, Published
from datadistill.data.labelled import Labelled
from datadistill.data.readers.cifar import Binary
from datadistill.data.readers.cifar_python import Python
from datadistill.data.readers.idx import read_idx_pairs
from datadistill.data.readers.libsvm import read_libsvm
from datadistill.data.readers.matlab import read_matlab
from datadistill.data.real import RealData, from_pixels

_USPS_COUNTS = (
    (1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644),
    (359, 264, 198, 166, 200, 160, 170, 147, 166, 177),
)
USPS_FILES = Published(
    "usps",
    (Layout(("usps/usps.bz2", "usps/usps.t.bz2"), partial(read_libsvm, counts=_USPS_COUNTS, size=16)),),
    "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/",
    ("ec16c51db3855ca6c91edd34d0e9b197", "8ea070ee2aca1ac39742fdd1ef5ed118"),
)

_FASHION_CONTENT = (
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)
FASHION_FILES = Published(
    "fashion-mnist",
    # Where torchvision keeps them, and unpacked; as they are published last, which is what is fetched.
    tuple(
        Layout(
            tuple(
                f"{folder}/{part}-ubyte{ending}"
                for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
            ),
            partial(read_idx_pairs, sha256=_FASHION_CONTENT, counts=((6000,) * 10, (1000,) * 10), size=28),
        )
        for folder in ("FashionMNIST/raw", "fashion-mnist")
        for ending in ("", ".gz")
    ),
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
)

_SVHN_COUNTS = (
    (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
    (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
)
_SVHN_MD5 = ("e26dedcc434d2e4c54c9b2d4a06d8373", "eb5a983be6a315427106f1b164d9cef3")
SVHN_FILES = Published(
    "svhn",
    (
        Layout(
            ("svhn/train_32x32.mat", "svhn/test_32x32.mat"),
            partial(read_matlab, md5=_SVHN_MD5, counts=_SVHN_COUNTS, size=32),
        ),
    ),
    "http://ufldl.stanford.edu/housenumbers/",
    _SVHN_MD5,
)


def _cifar(name: str, binary: Binary, python: Python, folders: tuple[str, str], md5: str) -> Published:
    """A CIFAR as a folder of either version, or as the archive of the binary one."""
    archive = f"{name}-binary.tar.gz"
    layouts = (
        Layout(tuple(f"{folders[0]}/{file}" for file in binary.names), binary.read),
        Layout(tuple(f"{folders[1]}/{file}" for file in python.names), python.read),
        Layout((archive,), partial(binary.read_archive, folder=folders[0], md5=md5)),
    )
    return Published(name, layouts, "https://www.cs.toronto.edu/~kriz/", (md5,))


_CIFAR_10_COUNTS = ((5000,) * 10, (1000,) * 10)
CIFAR_10_FILES = _cifar(
    "cifar-10",
    Binary(
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test_batch.bin",
        1,
        _CIFAR_10_COUNTS,
        (
            "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
            "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        ),
    ),
    Python(
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
        b"labels",
        _CIFAR_10_COUNTS,
        (
            "c99cafc152244af753f735de768cd75f",
            "d4bba439e000b95fd0a9bffe97cbabec",
            "54ebc095f3ab1f0389bbae665268c751",
            "634d18415352ddfa80567beed471001a",
            "482c414d41f54cd18b22e5b47cb7c3cb",
            "40351d587109b95175f43aff81a1287e",
        ),
    ),
    ("cifar-10-batches-bin", "cifar-10-batches-py"),
    "c32a1d4ab5d03f1284b67883e8d87530",
)

_CIFAR_100_COUNTS = ((500,) * 100, (100,) * 100)
CIFAR_100_FILES = _cifar(
    "cifar-100",
    Binary(("train.bin",), "test.bin", 2, _CIFAR_100_COUNTS),
    Python(
        ("train",),
        "test",
        b"fine_labels",
        _CIFAR_100_COUNTS,
        ("16019d7e3df5f24257cddd939b257f8d", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    ),
    ("cifar-100-binary", "cifar-100-python"),
    "03b5dce01913d631647c71ecec9e9cb8",
)


def usps(data_root: Path | None = None) -> RealData:
    """USPS (Hull 1994), 28x28: digits from envelopes, resized so that a network takes them and MNIST.

    USPS' digits fill their 16x16 pixels where MNIST's have a margin. So they get one of two pixels on each side, and
    20x20 becomes 28x28 by bilinear interpolation, rounded to 8 bit. At this size the experiments of Wang et al. (2018)
    adapt networks between MNIST and USPS; their copy has another split (7,438 and 1,860 images) and a mean of 0.160,
    which is what this margin gives, to three thousandths.
    """
    train, test = map(_resized, USPS_FILES.read(data_root))
    return from_pixels("usps", train, test, DIGITS)


def usps_16(data_root: Path | None = None) -> RealData:
    """USPS (Hull 1994) at its own size, 16x16: 7,291 and 2,007 grey digits from envelopes."""
    return from_pixels("usps-16", *USPS_FILES.read(data_root), DIGITS)


def svhn(data_root: Path | None = None) -> RealData:
    """SVHN (Netzer et al. 2011), cropped digits: 73,257 and 26,032 colour images of 32x32 pixels; without `extra`."""
    return from_pixels("svhn", *SVHN_FILES.read(data_root), DIGITS)


def fashion_mnist(data_root: Path | None = None) -> RealData:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 and 10,000 grey pictures of clothes, 28x28 pixels."""
    return from_pixels("fashion-mnist", *FASHION_FILES.read(data_root), FASHION)


def cifar_10(data_root: Path | None = None) -> RealData:
    """CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 colour photographs of 32x32 pixels in 10 classes."""
    return from_pixels("cifar-10", *CIFAR_10_FILES.read(data_root), CIFAR_10)


def cifar_100(data_root: Path | None = None) -> RealData:
    """CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 colour photographs of 32x32 pixels in 100 (fine) classes."""
    return from_pixels("cifar-100", *CIFAR_100_FILES.read(data_root), CIFAR_100)


def _resized(split: Labelled) -> Labelled:
    framed = F.pad(split.pixels.permute(0, 3, 1, 2).float(), (2, 2, 2, 2))
    images = F.interpolate(framed, (28, 28), mode="bilinear", align_corners=False)
    return Labelled(images.round_().byte().permute(0, 2, 3, 1), split.labels)

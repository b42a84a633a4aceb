"""The official files themselves, where DATADISTILL_DATA has them."""

import os
import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import datadistill as dd
from datadistill.data import DATASETS, catalogue
from datadistill.data.classes import CIFAR_10, CIFAR_100, FASHION
from datadistill.data.download import Published

PUBLISHED = {part.name: part for part in vars(catalogue).values() if isinstance(part, Published)}


def real(name: str, *folders: str) -> dd.RealData:
    root = Path(os.environ.get("DATADISTILL_DATA", ""))
    if "DATADISTILL_DATA" not in os.environ or not any((root / folder).exists() for folder in folders):
        pytest.skip(f"DATADISTILL_DATA has no {' or '.join(folders)}")
    return dd.load(name, root)


def splits(data: dd.RealData) -> tuple[int, int, int]:
    return len(data.train), len(data.held_out), len(data.test)


def ink(data: dd.RealData, label: int) -> torch.Tensor:
    """The mean picture of a class, in [0, 1]."""
    images = data.train.images[data.train.of_class(label)]
    return data.normalization.invert(images).mean(0)


def test_usps() -> None:
    data = real("usps", "usps")
    assert splits(data) == (6562, 729, 2007)
    assert data.train.images.shape[1:] == (1, 28, 28)
    assert data.test.counts.tolist() == [359, 264, 198, 166, 200, 160, 170, 147, 166, 177]
    # A 0 is a ring and a 1 is upright: neither inverted nor transposed.
    zero, one = ink(data, 0)[0], ink(data, 1)[0]
    assert zero[12:16, 12:16].mean() < 0.1 < zero[:, 4:10].mean()
    assert torch.cat([zero[:2].flatten(), zero[-2:].flatten(), zero[:, :2].flatten()]).max() == 0
    assert one[:, 12:16].mean() > 2 * one[12:16].mean()


def test_usps_at_its_own_size() -> None:
    data, large = real("usps-16", "usps"), real("usps", "usps")
    assert data.train.images.shape[1:] == (1, 16, 16)
    assert torch.equal(data.train.labels, large.train.labels)
    small = ink(data, 3)[None]
    framed = torch.nn.functional.pad(small, (2, 2, 2, 2))
    resized = torch.nn.functional.interpolate(framed, (28, 28), mode="bilinear")[0]
    assert torch.allclose(resized, ink(large, 3), atol=1 / 255)


def test_fashion_mnist() -> None:
    data = real("fashion-mnist", "fashion-mnist")
    assert splits(data) == (55_000, 5_000, 10_000)
    # The published mean and deviation of the training pixels.
    assert data.normalization.mean[0] == pytest.approx(0.2860, abs=1e-4)
    assert data.normalization.std[0] == pytest.approx(0.3530, abs=1e-4)
    assert data.classes == FASHION
    trousers = ink(data, FASHION.index("Trouser"))[0]
    assert trousers[:, 10:18].mean() > 2 * trousers[:, :8].mean()


def test_cifar_10() -> None:
    data = real("cifar-10", "cifar-10-batches-bin", "cifar-10-batches-py", "cifar-10-binary.tar.gz")
    assert splits(data) == (45_000, 5_000, 10_000)
    assert data.train.images.shape[1:] == (3, 32, 32)
    assert data.normalization.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-4)
    assert data.normalization.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=1e-4)
    # Sky: a plane's upper edge is brighter than its lower one, and blue.
    plane = ink(data, CIFAR_10.index("airplane"))
    assert plane[2, :4].mean() > plane[0, :4].mean()
    assert plane[:, :4].mean() > plane[:, -4:].mean()


def test_cifar_100() -> None:
    data = real("cifar-100", "cifar-100-binary", "cifar-100-python", "cifar-100-binary.tar.gz")
    assert splits(data) == (45_000, 5_000, 10_000)
    assert (data.train.counts == 450).all()
    assert data.classes == CIFAR_100


def test_svhn() -> None:
    data = real("svhn", "svhn")
    assert splits(data) == (68_257, 5_000, 26_032)
    assert data.train.images.shape[1:] == (3, 32, 32)


def test_mnist_in_colour_is_mnist(mnist: dd.RealData) -> None:
    data = dd.load("mnist-rgb")
    assert data.test.images.shape == (10_000, 3, 32, 32)
    assert torch.equal(data.train.labels, mnist.train.labels)
    pixels = data.normalization.invert(data.test.images[:100])
    inner = mnist.normalization.invert(mnist.test.images[:100])
    assert torch.allclose(pixels[:, :, 2:30, 2:30], inner.expand(-1, 3, -1, -1), atol=1e-6)
    border = pixels.clone()
    border[:, :, 2:30, 2:30] = 0
    assert border.abs().max() < 1e-6


def test_class_names() -> None:
    assert len(set(CIFAR_10)) == len(set(FASHION)) == 10
    assert len(set(CIFAR_100)) == 100
    assert list(CIFAR_100) == sorted(CIFAR_100)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tables_agree(name: str) -> None:
    """As many files as checksums; and the page on datasets says the same."""
    dataset = PUBLISHED[name]
    page = (ROOT / "docs" / "datasets.md").read_text()
    assert DATASETS.get(name).name == name
    assert len(dataset.layouts[-1].paths) == len(dataset.md5) == len(set(dataset.md5))
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in dataset.md5)
    for path, md5 in zip(dataset.layouts[-1].paths, dataset.md5, strict=True):
        assert re.search(rf"{re.escape(Path(path).name)}`? \| `{md5}`", page), (path, md5)
    assert dataset.host in page
    for layout in dataset.layouts:
        assert all(f"{Path(path).parent}/" in page or Path(path).name in page for path in layout.paths)


def test_every_dataset_is_on_the_page() -> None:
    page = (ROOT / "docs" / "datasets.md").read_text()
    for name in DATASETS.names():
        assert f"`{name}`" in page


@pytest.mark.parametrize("name", sorted({"usps", "usps-16", *PUBLISHED}))
def test_a_truncated_local_file_is_named(name: str, tmp_path: Path) -> None:
    layout = PUBLISHED[name.removesuffix("-16")].layouts[0]
    for path in layout.paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"truncated")
    with pytest.raises(dd.DamagedFileError, match=layout.paths[0]):
        dd.load(name, tmp_path)

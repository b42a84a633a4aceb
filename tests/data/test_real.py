import gzip
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from own import digit_arrays

import datadistill as dd
from datadistill.data.real import stratified
from datadistill.data.transforms import Normalization
from datadistill.utils.errors import DamagedFileError, RequestError
from datadistill.utils.runtime import stream

MNIST = Path(str(resources.files("datadistill") / "data" / "mnist"))


def test_mnist_is_whole(mnist: dd.RealData) -> None:
    assert (len(mnist.train), len(mnist.held_out), len(mnist.test)) == (55_000, 5_000, 10_000)
    assert mnist.train.images.shape[1:] == (1, 28, 28)
    # The published mean and deviation of the training pixels.
    assert mnist.normalization.mean[0] == pytest.approx(0.1307, abs=1e-4)
    assert mnist.normalization.std[0] == pytest.approx(0.3081, abs=1e-4)
    assert mnist.test.counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_digits_are_those_that_scikit_learn_gives(digits: dd.RealData) -> None:
    """They are read from its file, without it."""

    def sorted_rows(pixels: np.ndarray, labels: np.ndarray) -> list[bytes]:
        return sorted(image.tobytes() + bytes([label]) for image, label in zip(pixels, labels, strict=True))

    images, labels, *_ = digit_arrays(1797)
    splits = (digits.train, digits.held_out, digits.test)
    pixels = torch.cat([digits.normalization.invert(split.images)[:, 0] for split in splits])
    found = (pixels * 255).round().to(torch.uint8).numpy()
    assert sorted_rows(found, torch.cat([split.labels for split in splits]).numpy()) == sorted_rows(images, labels)


def test_held_out_is_a_stratified_part_of_the_training_split(digits: dd.RealData) -> None:
    together = digits.train.counts + digits.held_out.counts
    assert together.sum() == 1438
    assert torch.allclose(digits.held_out.counts / together, torch.tensor(0.1), atol=0.01)
    train = {image.numpy().tobytes() for image in digits.train.images}
    assert not any(image.numpy().tobytes() in train for image in digits.held_out.images)


def test_held_out_never_depends_on_a_seed(digits: dd.RealData) -> None:
    torch.manual_seed(12345)
    assert torch.equal(dd.load("DIGITS").held_out.images, digits.held_out.images)


def test_normalization_is_measured_and_inverted() -> None:
    pixels = torch.randint(0, 256, (50, 4, 4, 3), generator=stream(0, "pixels"), dtype=torch.uint8)
    pixels[..., 2] = 7
    normalization = Normalization.measure(pixels)
    images = normalization.apply(pixels)
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(images.std((0, 2, 3), correction=0)[:2], torch.ones(2), atol=1e-5)
    assert normalization.std[2] == 1.0
    assert torch.allclose(normalization.invert(images) * 255, pixels.permute(0, 3, 1, 2).float(), atol=1e-3)


def test_batches_are_balanced_and_repeatable(digits: dd.RealData) -> None:
    chosen = digits.train.draw(1003, stream(3, "batch"))
    counts = torch.bincount(digits.train.labels[chosen])
    assert counts.min() == 100
    assert counts.max() == 101
    assert torch.equal(chosen, digits.train.draw(1003, stream(3, "batch")))
    assert not torch.equal(chosen, digits.train.draw(1003, stream(4, "batch")))


def test_a_batch_reaches_every_image(digits: dd.RealData) -> None:
    chosen = digits.train.draw(30_000, stream(0, "batch"))
    assert len(chosen.unique()) == len(digits.train)


def test_of_class(digits: dd.RealData) -> None:
    for label in range(10):
        members = digits.train.of_class(label)
        assert (digits.train.labels[members] == label).all()
        assert len(members) == digits.train.counts[label]


def test_stratified_is_exact() -> None:
    labels = torch.tensor([0] * 10 + [1] * 5 + [2] * 2)
    for count in range(1, 18):
        chosen = stratified(labels, count, seed=0)
        assert len(chosen.unique()) == count
        shares = torch.tensor([10, 5, 2]) * count / 17
        assert ((torch.bincount(labels[chosen], minlength=3) - shares).abs() <= 1).all()


@pytest.mark.parametrize("ipc", [0, -1, 6_000])
def test_ipc_must_fit_the_smallest_class(mnist: dd.RealData, ipc: int) -> None:
    with pytest.raises(RequestError, match=r"ipc is"):
        mnist.check_ipc(ipc)


def test_unknown_dataset_suggests_the_nearest() -> None:
    with pytest.raises(RequestError, match="did you mean mnist"):
        dd.load("mnits")


def test_data_root_is_read_and_checked(tmp_path: Path) -> None:
    shutil.copytree(MNIST, tmp_path / "mnist")
    assert len(dd.load("mnist", tmp_path).test) == 10_000
    target = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    whole = target.read_bytes()
    target.write_bytes(whole[:-100])
    with pytest.raises(DamagedFileError, match="cannot be unpacked"):
        dd.load("mnist", tmp_path)
    raw = bytearray(gzip.decompress(whole))
    raw[100] ^= 1
    target.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(DamagedFileError, match="SHA-256"):
        dd.load("mnist", tmp_path)
    target.unlink()
    assert len(dd.load("mnist", tmp_path).test) == 10_000, "a folder that lacks a file is passed over"

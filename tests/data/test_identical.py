"""The same pixels give the same bits, whatever they come in."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from own import Arrays, Pairs, digit_arrays, write_folder, write_hugging_face, write_npz

import datadistill as dd


def quiet(text: str) -> None:
    pass


def from_folder(place: Path, arrays: Arrays) -> dd.RealData:
    return dd.load(write_folder(place / "folder", arrays), say=quiet)


def from_npz(place: Path, arrays: Arrays) -> dd.RealData:
    return dd.load(write_npz(place / "arrays.npz", arrays), say=quiet)


def from_hugging_face(place: Path, arrays: Arrays) -> dd.RealData:
    pytest.importorskip("datasets", reason="the extra hf is not installed")
    return dd.load(write_hugging_face(place / "saved", arrays), say=quiet)


def from_pairs(place: Path, arrays: Arrays) -> dd.RealData:
    return dd.from_datasets(Pairs(*arrays[:2]), Pairs(*arrays[2:]), say=quiet)


CONTAINERS = {
    "an image folder": from_folder,
    "an NPZ file": from_npz,
    "a Hugging Face folder": from_hugging_face,
    "a pair of datasets": from_pairs,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CONTAINERS)
def test_the_same_pixels_give_the_same_bits(name: str, tmp_path: Path) -> None:
    arrays = digit_arrays()
    real, other = dd.from_arrays(*arrays, say=quiet), CONTAINERS[name](tmp_path, arrays)
    assert real.classes == other.classes == tuple("0123456789")
    assert real.normalization == other.normalization
    assert real.source is not None
    assert other.source is not None
    assert real.source.digest == other.source.digest
    for split in ("train", "held_out", "test"):
        one, two = getattr(real, split), getattr(other, split)
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)
    runs = [
        dd.distill(data, dd.methods.DD(batch=32), model="mlp", iterations=3, device="cpu").distilled
        for data in (real, other)
    ]
    assert torch.equal(runs[0].images, runs[1].images)
    assert runs[0].learning_rates is not None
    assert runs[1].learning_rates is not None
    assert torch.equal(runs[0].learning_rates, runs[1].learning_rates)


def grey_3(images: np.ndarray) -> np.ndarray:
    return np.repeat(images[..., None], 3, axis=3)


FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "[n, h, w, 1]": lambda images: images[..., None],
    "[n, 1, h, w]": lambda images: images[:, None],
    "[n, h, w, 3] of grey": grey_3,
    "[n, 3, h, w] of grey": lambda images: grey_3(images).transpose(0, 3, 1, 2),
    "floats up to 1": lambda images: (images / 255).astype(np.float32),
    "floats up to 255": lambda images: images.astype(np.float64),
    "64-bit numbers": lambda images: images.astype(np.int64),
    "opaque RGBA": lambda images: np.concatenate([grey_3(images), np.full((*images.shape, 1), 255, np.uint8)], 3),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_an_array_makes_no_difference(form: str) -> None:
    x_train, y_train, x_test, y_test = digit_arrays()
    real = dd.from_arrays(x_train, y_train, x_test, y_test, say=quiet)
    other = dd.from_arrays(FORMS[form](x_train), y_train[:, None], FORMS[form](x_test), np.eye(10)[y_test], say=quiet)
    assert real.source is not None
    assert other.source is not None
    assert real.source.digest == other.source.digest
    assert torch.equal(real.train.images, other.train.images)


def test_two_datasets_are_data_wherever_data_is_asked_for() -> None:
    arrays = digit_arrays()
    pair = (Pairs(*arrays[:2]), Pairs(*arrays[2:]))
    run = dd.distill(pair, dd.methods.DD(batch=32), model="mlp", iterations=2, device="cpu")
    score = dd.evaluate(run.distilled, pair)
    assert score.images == 100

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own import Pairs, digit_arrays
from PIL import Image
from torch.utils.data import Dataset

import datadistill as dd


def quiet(text: str) -> None:
    pass


def saved(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path / "data.npz", **arrays)
    return path / "data.npz"


X, Y, X_TEST, Y_TEST = digit_arrays(100, 40)


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test", "x_val", "y_val"),
        ("train_images", "train_labels", "test_images", "test_labels", "val_images", "val_labels"),
        ("X_train", "Y_train", "X_test", "Y_test", "X_valid", "Y_valid"),
    ],
)
def test_names_of_arrays(names: tuple[str, ...], tmp_path: Path) -> None:
    arrays = dict(zip(names, (X, Y, X_TEST[:20], Y_TEST[:20], X_TEST[20:], Y_TEST[20:]), strict=True))
    real = dd.load(saved(tmp_path, **arrays), say=quiet)
    assert (len(real.train), len(real.held_out), len(real.test)) == (100, 20, 20)


@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels"), ("data", "targets")])
def test_one_pair_is_split(names: tuple[str, str], tmp_path: Path) -> None:
    real = dd.load(saved(tmp_path, **dict(zip(names, (X, Y), strict=True))), say=quiet)
    assert (len(real.train), len(real.held_out), len(real.test)) == (72, 8, 20)


def test_class_names(tmp_path: Path) -> None:
    names = np.array([f"digit {number}" for number in range(10)])
    assert dd.load(saved(tmp_path, x=X, y=Y, class_names=names), say=quiet).classes[3] == "digit 3"
    assert dd.from_arrays(X, names[Y], say=quiet).classes == tuple(names)
    assert dd.from_arrays(X, Y * 7 + 1, say=quiet).classes == tuple(str(number * 7 + 1) for number in range(10))


def test_two_classes(tmp_path: Path) -> None:
    assert dd.from_arrays(X, Y > 4, say=quiet).classes == ("0", "1")


def test_floats_of_a_dark_split_are_read_as_those_of_the_others() -> None:
    dark = np.minimum(X_TEST, 1).astype(np.float32)
    real = dd.from_arrays(X.astype(np.float32), Y, dark, Y_TEST, say=quiet)
    assert real.normalization.invert(real.test.images).max() < 2 / 255


def test_arrays_are_resized_as_files_are(tmp_path: Path) -> None:
    real = dd.from_arrays(X, Y, X_TEST, Y_TEST, size=12, channels=3, say=quiet)
    other = dd.from_datasets(Pairs(X, Y), Pairs(X_TEST, Y_TEST), size=12, channels=3, say=quiet)
    assert real.train.images.shape[1:] == (3, 12, 12)
    assert torch.equal(real.train.images, other.train.images)


PLAIN = {"x_train": X, "y_train": Y, "x_test": X_TEST, "y_test": Y_TEST}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no arrays": ({"a": X}, "has no 'x_train' and 'y_train'.*it has a"),
    "no labels": ({"x_train": X}, "'x_train', but no labels"),
    "other lengths": ({**PLAIN, "y_test": Y}, r"'x_test' of .* has the shape \(40, 8, 8\) and 'y_test' of .*\(100,\)"),
    "labels that are floats": ({**PLAIN, "y_train": Y / 2}, "'y_train' of .* is float64, but labels are"),
    "labels that are dates": ({**PLAIN, "y_train": Y.astype("M8[s]")}, "'y_train' of .* is datetime64"),
    "several labels": ({**PLAIN, "y_train": np.ones((100, 10), int)}, "is not one-hot"),
    "a label that is new": ({**PLAIN, "y_test": Y_TEST + 1}, "has the label 10, which is of no image to train on"),
    "a label without a name": ({**PLAIN, "classes": np.array(["a", "b"])}, "which is not one of the 2 classes"),
    "flat images": ({**PLAIN, "x_train": X.reshape(100, 64)}, r"shape \(100, 64\), but images are"),
    "five channels": ({**PLAIN, "x_train": np.zeros((100, 5, 8, 8))}, "with 1, 3 or 4 channels"),
    "images that are not square": ({"x": X[:, :6], "y": Y}, "have 8x6 pixels: give one size"),
    "below zero": ({**PLAIN, "x_train": X.astype(np.int16) - 1}, "values from -1 to 254, but pixels are whole"),
    "normalised images": ({**PLAIN, "x_train": X / 255 - 0.5}, "not normalised: that is done here"),
    "no numbers": ({**PLAIN, "x_train": X * np.nan}, "values from nan to nan"),
    "complex images": ({**PLAIN, "x_train": X * 1j}, "complex128, but pixels are"),
    "an empty array": ({**PLAIN, "x_train": X[:0]}, "is empty"),
    "one class": ({"x": X, "y": Y * 0}, "only the class '0'"),
    "four images": ({"x": X[:4], "y": Y[:4]}, "too few images"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    arrays, sentence = WRONG[name]
    with pytest.raises(dd.DatadistillError, match=sentence) as caught:
        dd.load(saved(tmp_path, **arrays), say=quiet)
    assert "\n" not in str(caught.value)


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_no_pickle_is_executed(tmp_path: Path) -> None:
    harmful = np.array([Harmful(tmp_path / "executed")] * 100, dtype=object)
    path = saved(tmp_path, **{**PLAIN, "y_train": harmful})
    with pytest.raises(dd.DamagedFileError, match="holds Python objects"):
        dd.load(path, say=quiet)
    path.write_bytes(pickle.dumps(Harmful(tmp_path / "executed")))
    with pytest.raises(dd.DamagedFileError, match="no NPZ file"):
        dd.load(path, say=quiet)
    assert not (tmp_path / "executed").exists()


def npy(shape: tuple[int, ...], kind: str, content: bytes) -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def archive(path: Path, image: bytes) -> Path:
    with zipfile.ZipFile(path / "data.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x_train.npy", image)
        labels = io.BytesIO()
        np.save(labels, Y)
        file.writestr("y_train.npy", labels.getvalue())
    return path / "data.npz"


@pytest.mark.parametrize(
    ("shape", "kind", "sentence"),
    [
        ((100, 2**20, 2**20), "|u1", "claims the shape"),
        ((2**62, 0), "|u1", "is empty"),
        ((2**62,), "|S0", "is empty"),
        ((100, 8, -8), "|u1", "no plain array"),
    ],
)
def test_claimed_shapes(shape: tuple[int, ...], kind: str, sentence: str, tmp_path: Path) -> None:
    content = b"" if sentence == "is empty" else bytes(6400)
    with pytest.raises(dd.DamagedFileError, match=sentence):
        dd.load(archive(tmp_path, npy(shape, kind, content)), say=quiet)


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datadistill.data.readers.npz._SMALL", 2**16)
    path = archive(tmp_path, npy((100, 256, 256), "|u1", bytes(100 * 2**16)))
    with pytest.raises(dd.DamagedFileError, match=r"claims to become 6,5.* refused"):
        dd.load(path, say=quiet)


def test_an_array_larger_than_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datadistill.data.options._memory", lambda: 2**12)
    with pytest.raises(dd.RequestError, match="GiB while they are loaded"):
        dd.load(saved(tmp_path, **PLAIN), say=quiet)


class Items(Dataset[Any]):
    """A dataset of whatever it is given."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


WRONG_ITEMS: dict[str, tuple[tuple[Any, ...], str]] = {
    "text": ((("a", 0),), "image 0 of train of datasets is a str"),
    "no pairs": ((1, 2), "item 0 of train of datasets is no pair"),
    "several shapes": (((torch.zeros(1, 4, 4), 0), (torch.zeros(1, 5, 5), 1)), "have several shapes"),
    "several labels": (((torch.zeros(1, 4, 4), [0]), (torch.zeros(1, 4, 4), [1, 2])), "labels of .* several shapes"),
    "nothing": ((), "train of datasets is empty"),
    "normalised": (((torch.full((1, 4, 4), -0.5), 0), (torch.zeros(1, 4, 4), 1)), "not normalised"),
}


@pytest.mark.parametrize("name", WRONG_ITEMS)
def test_datasets_that_are_none(name: str) -> None:
    items, sentence = WRONG_ITEMS[name]
    with pytest.raises(dd.RequestError, match=sentence):
        dd.from_datasets(Items(*items), say=quiet)


class Failing(Items):
    """A dataset whose code fails."""

    def __getitem__(self, index: int) -> Any:
        raise KeyError("no such file")


USABLE: dict[str, Any] = {
    "a tensor with a gradient": lambda x: torch.tensor(x / 255, requires_grad=True),
    "a tensor of bfloat16": lambda x: torch.tensor(x).bfloat16(),
    "a list of arrays": list,
    "a list of tensors": lambda x: [torch.tensor(one) for one in x],
    "nested lists": lambda x: x.tolist(),
    "a list of palette images": lambda x: [Image.fromarray(one).convert("P") for one in x],
}


@pytest.mark.parametrize("name", USABLE)
def test_arrays_as_people_have_them(name: str) -> None:
    real, other = dd.from_arrays(X, Y, say=quiet), dd.from_arrays(USABLE[name](X), Y, say=quiet)
    rounding = 4 if "bfloat16" in name else 0.01  # of 255
    assert float((real.train.images - other.train.images).abs().max()) < rounding / 255 / real.normalization.std[0]


LABELS: dict[str, Any] = {
    "floats": Y.astype(np.float32),
    "objects": Y.astype(object),
    "a tensor": torch.tensor(Y),
    "a list": Y.tolist(),
    "text objects": np.array([str(label) for label in Y], dtype=object),
    "bytes": np.array([str(label) for label in Y], dtype="S1"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_as_people_have_them(name: str) -> None:
    real, other = dd.from_arrays(X, Y, say=quiet), dd.from_arrays(X, LABELS[name], say=quiet)
    assert other.classes == tuple("0123456789")
    assert torch.equal(real.train.labels, other.train.labels)


def test_classes_that_are_numbers_are_the_labels_themselves(tmp_path: Path) -> None:
    plain = dd.from_arrays(X, Y, say=quiet).train.counts
    for order in (list(range(10)), np.arange(9, -1, -1), torch.arange(10)):
        real = dd.from_arrays(X, Y, classes=order, say=quiet)
        assert real.classes == tuple(str(int(number)) for number in order)
        assert real.train.counts.tolist() == [plain[int(number)] for number in order]
    assert dd.from_arrays(X, Y > 4, classes=[False, True], say=quiet).classes == ("False", "True")
    path = saved(tmp_path, x=X, y=Y, classes=np.arange(10))
    assert dd.load(path, say=quiet).classes == tuple("0123456789")


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "ragged": ({"x_train": [X[0], X[1, :5]] * 50}, "x_train is a list that is no array: its items have several shapes"),
    "ragged tensors": ({"x_train": [torch.zeros(3, 3), torch.zeros(4, 4)] * 50}, "x_train is a list .* several shapes"),
    "a sparse tensor": ({"x_train": torch.zeros(100, 8, 8).to_sparse()}, "x_train is a Tensor that is no array"),
    "no array": ({"x_train": {"a": X}}, r"x_train has the shape \(\)"),
    "ragged labels": ({"y_train": [[0], [1, 2]] * 50}, "y_train is a list that is no array"),
    "labels that are missing": ({"y_train": [None, 1] * 50}, "y_train is object, but labels are"),
    "one name": ({"classes": "abcdefghij"}, "classes is a str, but must be a list of names"),
    "names without an order": ({"classes": set("abcdefghij")}, "classes is a set, but must be a list of names"),
    "a name that is none": ({"classes": ["a", None]}, "item 1 of classes is a NoneType"),
    "too few names": ({"classes": ["a", "b"]}, "which is not one of the 2 classes"),
    "numbers that are no labels": ({"classes": range(1, 11)}, "has the label 0, which is not one of the 10 classes"),
    "nothing": ({"x_train": None}, "x_train is None"),
    "a name that is no text": ({"name": 3}, "name is 3, but must be text"),
    "names in several shapes": ({"classes": np.array([["a"], ["b"]])}, "item 0 of classes is a list"),
}


@pytest.mark.skipif(os.environ.get("DATADISTILL_SHAPES") == "1", reason="types are refused before")
@pytest.mark.parametrize("name", UNUSABLE)
def test_arrays_that_are_none(name: str) -> None:
    arrays, sentence = UNUSABLE[name]
    with pytest.raises(dd.RequestError, match=sentence) as caught:
        dd.from_arrays(**{"x_train": X, "y_train": Y, **arrays}, say=quiet)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.environ.get("DATADISTILL_SHAPES") == "1", reason="types are refused before")
def test_pairs_that_are_none() -> None:
    pairs = Pairs(X, Y)
    for data in ("mnist", pairs, (pairs,), None, (X, Y, X_TEST)):
        with pytest.raises(dd.RequestError, match=r"the dataset is a .*, but must be RealData"):
            dd.distill(data, model="mlp", iterations=1)  # type: ignore[arg-type]
    with pytest.raises(dd.RequestError, match="item 0 of train of datasets cannot be read: KeyError: 'no such file'"):
        dd.from_datasets(Failing(1), say=quiet)
    with pytest.raises(dd.RequestError, match="train is None"):
        dd.from_datasets(None, say=quiet)  # type: ignore[arg-type]
    with pytest.raises(dd.RequestError, match="data_root is 3"):
        dd.load("digits", 3)  # type: ignore[arg-type]
    mixed = Items((torch.zeros(1, 4, 4), 0), (torch.zeros(1, 4, 4, dtype=torch.uint8), 1))
    with pytest.raises(dd.RequestError, match="train of datasets have several types, floats and uint8 among them"):
        dd.from_datasets(mixed, say=quiet)
    with pytest.raises(dd.RequestError, match="the dataset is a ndarray, but load takes a name or a path"):
        dd.load(X)  # type: ignore[arg-type]


def test_half_a_split_is_refused() -> None:
    with pytest.raises(dd.RequestError, match="x_test and y_test belong together"):
        dd.from_arrays(X, Y, X_TEST, say=quiet)


def test_class_names_of_a_dataset_are_taken() -> None:
    pairs = Pairs(X, Y)
    pairs.classes = [f"digit {number}" for number in range(10)]  # type: ignore[attr-defined]
    assert dd.from_datasets(pairs, say=quiet).classes[7] == "digit 7"

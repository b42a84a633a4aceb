"""Arrays, tensors and pairs that cannot be used: each ends in an error of ours that names the argument."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fuzz import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import datadistill as dd

pytestmark = pytest.mark.skipif(os.environ.get("DATADISTILL_SHAPES") == "1", reason="types are refused before")

X = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
Y = np.arange(40) % 2
FLOATS = X.astype(np.float32) / 255


def with_first(values: np.ndarray, value: Any) -> np.ndarray:
    changed = values.copy()
    changed.flat[0] = value
    return changed


class Raises:
    """Raises whatever it is asked."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise KeyError("no array")

    def __len__(self) -> int:
        raise OSError("no length")


IMAGES: dict[str, Callable[[], Any]] = {
    "good": lambda: X,
    "good floats": lambda: FLOATS,
    "a tensor that is learned": lambda: torch.tensor(FLOATS, requires_grad=True),
    "none": lambda: None,
    "text": lambda: "images",
    "bytes": lambda: b"images",
    "a number": lambda: 3.5,
    "truth": lambda: True,
    "an empty list": lambda: [],
    "a ragged list": lambda: [X[0], X[1, :5]] * 20,
    "a list of none": lambda: [None] * 40,
    "a dictionary": lambda: {"x": X},
    "a set": lambda: {1, 2},
    "a generator": lambda: (x for x in X),
    "objects": lambda: np.array([None] * 40, dtype=object),
    "objects that are images": lambda: np.array([*X, None], dtype=object)[:40],
    "complex": lambda: X.astype(complex),
    "a complex tensor": lambda: torch.ones(40, 8, 8, dtype=torch.complex64),
    "nan": lambda: with_first(FLOATS, np.nan),
    "inf": lambda: with_first(FLOATS, np.inf),
    "far below zero": lambda: with_first(FLOATS, -1e30),
    "huge": lambda: with_first(FLOATS, 1e38),
    "signed": lambda: X.astype(np.int64) - 300,
    "large whole numbers": lambda: X.astype(np.uint64) * 2**50,
    "none of them": lambda: X[:0],
    "fewer": lambda: X[:-1],
    "no pixels": lambda: X[:, :0],
    "one axis": lambda: Y,
    "five axes": lambda: X[:, None, None],
    "nine axes": lambda: X.reshape(40, 1, 1, 1, 1, 1, 1, 8, 8),
    "other edges": lambda: X[:, :5],
    "many channels": lambda: np.repeat(X[..., None], 7, axis=3),
    "dates": lambda: np.zeros((40, 8, 8), "M8[s]"),
    "strings": lambda: np.full((40, 8, 8), "a"),
    "records": lambda: np.zeros((40, 8, 8), [("r", "u1"), ("g", "u1")]),
    "masked": lambda: np.ma.masked_equal(X, 3),
    "sparse": lambda: torch.tensor(FLOATS).to_sparse(),
    "meta": lambda: torch.empty(40, 8, 8, device="meta"),
    "quantised": lambda: torch.quantize_per_tensor(torch.tensor(FLOATS), 0.1, 0, torch.quint8),
    "half": lambda: torch.tensor(FLOATS).half(),
    "whole floats of eight bits": lambda: torch.ones(40, 8, 8).to(torch.float8_e4m3fn),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(8, 8), torch.ones(7, 8)]),
    "raising": lambda: Raises(),
    "a class": lambda: np.ndarray,
    "a dataset": lambda: TensorDataset(torch.tensor(X)),
}
LABELS: dict[str, Callable[[], Any]] = {
    "good": lambda: Y,
    "whole floats": lambda: Y.astype(np.float64),
    "text labels": lambda: ["ab"[y] for y in Y],
    "one-hot": lambda: np.eye(2)[Y],
    "none": lambda: None,
    "text": lambda: "labels",
    "a number": lambda: 1,
    "an empty list": lambda: [],
    "negative": lambda: Y - 3,
    "floats": lambda: Y / 2,
    "nan": lambda: with_first(Y.astype(float), np.nan),
    "inf": lambda: with_first(Y.astype(float), np.inf),
    "huge": lambda: [10**30, *Y[1:].tolist()],
    "beyond all floats": lambda: [10**400, *Y[1:].tolist()],
    "complex": lambda: Y.astype(complex),
    "fewer": lambda: Y[:-1],
    "one class": lambda: Y * 0,
    "each its own": lambda: np.arange(40),
    "several": lambda: np.stack([Y, Y], 1),
    "ragged": lambda: [[0], [0, 1]] * 20,
    "none among them": lambda: [None, *Y[1:].tolist()],
    "mixed": lambda: ["a", *Y[1:].tolist()],
    "objects": lambda: np.array([object()] * 40),
    "dates": lambda: np.zeros(40, "M8[s]"),
    "sets": lambda: [{1}] * 40,
    "sparse": lambda: torch.tensor(Y).to_sparse(),
    "meta": lambda: torch.empty(40, dtype=torch.long, device="meta"),
    "soft": lambda: np.full((40, 2), 0.5),
    "no columns": lambda: np.zeros((40, 0)),
    "odd text": lambda: ["\ud800", "\x1b[31m"] * 20,
    "raising": lambda: Raises(),
}


class Own(Dataset[Any]):
    """A dataset whose items are whatever a function gives."""

    def __init__(self, item: Callable[[int], Any], length: Callable[[], Any] = lambda: 40) -> None:
        self.item, self.length = item, length

    def __len__(self) -> Any:
        return self.length()

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


class Endless(Dataset[Any]):
    """A dataset without a length."""

    def __getitem__(self, index: int) -> Any:
        return X[0], 0


class Stream(IterableDataset[Any]):
    """A dataset without numbers."""

    def __iter__(self) -> Any:
        return iter([(X[0], 0)])


DATASETS: dict[str, Callable[[], Any]] = {
    "good": lambda: Own(lambda index: (X[index], int(Y[index]))),
    "none": lambda: None,
    "text": lambda: "train",
    "a number": lambda: 3,
    "an array": lambda: X,
    "without a length": Endless,
    "a stream": Stream,
    "a negative length": lambda: Own(lambda index: (X[index], 0), lambda: -1),
    "a length of text": lambda: Own(lambda index: (X[index], 0), lambda: "40"),
    "empty": lambda: Own(lambda index: (X[index], 0), lambda: 0),
    "alone": lambda: Own(lambda index: (X[index],)),
    "three": lambda: Own(lambda index: (X[index], 0, 0)),
    "dictionaries": lambda: Own(lambda index: {"image": X[index], "label": 0}),
    "nothing": lambda: Own(lambda index: None),
    "raising": lambda: Own(lambda index: 1 / 0),
    "images of text": lambda: Own(lambda index: ("x", 0)),
    "images of several shapes": lambda: Own(lambda index: (X[index, : index % 3 + 1], 0)),
    "images of nan": lambda: Own(lambda index: (torch.full((1, 8, 8), float("nan")), int(Y[index]))),
    "images on meta": lambda: Own(lambda index: (torch.empty(1, 8, 8, device="meta"), 0)),
    "labels of none": lambda: Own(lambda index: (X[index], None)),
    "labels of several shapes": lambda: Own(lambda index: (X[index], [0] * (index % 3))),
    "labels on meta": lambda: Own(lambda index: (X[index], torch.empty((), device="meta"))),
    "labels that are objects": lambda: Own(lambda index: (X[index], object())),
    "one tensor": lambda: TensorDataset(torch.tensor(X)),
}
KEYWORDS: dict[str, list[Any]] = {
    "classes": [None, "ab", 3, ["a"], ["a", "a"], ["a", None], [1.5, 2], {"a": 1}, ["a", "b", "c"]],
    "name": [None, "x", 3, "", "\ud800", "a/b" * 100],
    "size": [None, None, 0, -1, 3.5, "8", 12, 10**9, True, float("nan")],
    "channels": [None, None, 0, 1, 2, 3, "1", 1.0],
    "white": [None, None, 0, -1, 1, 255, "255", float("nan"), float("inf"), 10**400, 1 + 2j],
}
quiet: Any = {"say": lambda text: None}
often = settings(max_examples=examples(1500), deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
keywords = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in KEYWORDS.items()})


def ends_well(call: Callable[[], Any], *names: str) -> None:
    """What comes is data that can be used, or an error of ours that names an argument."""
    said = ""
    try:
        real = call()
    except dd.RequestError as error:
        said = str(error)
    if said:
        assert any(name in said for name in (*names, *KEYWORDS)), said
        assert "\n" not in said
        return
    assert bool(real.train.images.isfinite().all())
    assert len(real.train) > 0
    assert not real.train.images.requires_grad


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore")
@often
@given(*[st.sampled_from(sorted(known)) for known in (IMAGES, LABELS, IMAGES, LABELS)], keywords, st.booleans())
def test_arrays(x: str, y: str, x_test: str, y_test: str, given: dict[str, Any], has_test: bool) -> None:
    test = (IMAGES[x_test](), LABELS[y_test]()) if has_test else ()
    names = ("x_train", "y_train", "_test", "arrays", str(given.get("name", "arrays")))
    ends_well(lambda: dd.from_arrays(IMAGES[x](), LABELS[y](), *test, **given, **quiet), *names)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", IMAGES)
def test_images_alone(name: str) -> None:
    ends_well(lambda: dd.from_arrays(IMAGES[name](), Y, **quiet), "x_train", "arrays")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LABELS)
def test_labels_alone(name: str) -> None:
    ends_well(lambda: dd.from_arrays(X, LABELS[name](), **quiet), "y_train", "arrays")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DATASETS)
def test_datasets(name: str) -> None:
    ends_well(lambda: dd.from_datasets(DATASETS[name](), **quiet), "train", "datasets")
    ends_well(lambda: dd.from_datasets(DATASETS["good"](), DATASETS[name](), **quiet), "test", "datasets")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in DATASETS if name != "good"])
def test_what_is_no_dataset_is_neither_distilled_nor_judged_on(name: str, digits: dd.RealData) -> None:
    data = dd.distill(digits, model="mlp", iterations=1, device="cpu").distilled
    for odd in (DATASETS[name](), (DATASETS[name](),), (DATASETS["good"](), DATASETS[name]()), [None] * 2):
        if odd is None or (isinstance(odd, tuple) and len(odd) == 2 and odd[1] is None):
            continue  # without a test split, which is made
        with pytest.raises(dd.RequestError, match=r"dataset|train|test|item"):
            dd.distill(odd, model="mlp", iterations=1)
        with pytest.raises(dd.RequestError, match=r"dataset|train|test|item"):
            dd.evaluate(data, odd)


@pytest.mark.parametrize("odd", [None, 3, "run", {}, [], torch.ones(3)])
def test_what_is_no_distilled_data_is_not_judged(odd: Any, digits: dd.RealData) -> None:
    with pytest.raises(dd.RequestError, match="distilled"):
        dd.evaluate(odd, digits)

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from datadistill.data.labelled import Labelled
from datadistill.data.readers.matlab import read_matlab
from datadistill.utils.errors import DamagedFileError

COUNTS = ((1, 2) + (0,) * 8, (1,) + (0,) * 9)
SIZE = 4
PIXELS = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
LABELS = np.array([[1], [10], [1]], np.uint8)
NAMES = ("train.mat", "test.mat")


def mat(**arrays: Any) -> bytes:
    file = io.BytesIO()
    savemat(file, arrays, do_compression=True)
    return file.getvalue()


def planes(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(1, 2, 3, 0)


TRAIN = mat(X=planes(PIXELS[:3]), y=LABELS)
TEST = mat(X=planes(PIXELS[3:]), y=np.array([[10]], np.uint8))


def read(folder: Path, train: bytes = TRAIN, checked: bytes | None = None) -> tuple[Labelled, Labelled]:
    paths = tuple(folder / name for name in NAMES)
    paths[0].write_bytes(train)
    paths[1].write_bytes(TEST)
    md5 = tuple(hashlib.md5(content).hexdigest() for content in (train if checked is None else checked, TEST))
    return read_matlab(paths, md5, COUNTS, SIZE)


def test_height_width_channel_and_the_ten(tmp_path: Path) -> None:
    train, test = read(tmp_path)
    assert torch.equal(train.pixels, torch.from_numpy(PIXELS[:3]))
    assert torch.equal(test.pixels, torch.from_numpy(PIXELS[3:]))
    assert train.labels.tolist() == [1, 0, 1]
    assert test.labels.tolist() == [0]


DAMAGE = {
    "no X": (mat(y=LABELS), "X and y"),
    "no MATLAB file": (b"not a MATLAB file", "X and y"),
    "an image too few": (mat(X=planes(PIXELS[:2]), y=LABELS), "does not hold 3 images"),
    "images first": (mat(X=PIXELS[:3], y=LABELS), "does not hold 3 images"),
    "other numbers": (mat(X=planes(PIXELS[:3]).astype(float), y=LABELS), "does not hold 3 images"),
    "a label beyond the range": (mat(X=planes(PIXELS[:3]), y=LABELS + 1), "from 1 to 10"),
    "a label of 0": (mat(X=planes(PIXELS[:3]), y=LABELS % 10), "from 1 to 10"),
    "words as labels": (mat(X=planes(PIXELS[:3]), y=["one", "ten", "one"]), "from 1 to 10"),
    "a label too few": (mat(X=planes(PIXELS[:3]), y=LABELS[:2]), "does not hold 3 labels"),
    "classes of other sizes": (mat(X=planes(PIXELS[:3]), y=LABELS[[0, 1, 1]]), "other numbers of images"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_even_where_the_checksum_is_right(name: str, tmp_path: Path) -> None:
    content, sentence = DAMAGE[name]
    with pytest.raises(DamagedFileError, match=rf"train\.mat is damaged.*{sentence}"):
        read(tmp_path, content)


@given(place=st.integers(0, len(TRAIN) - 1), removed=st.integers(0, 5), put=st.binary(max_size=6))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_altered_files_never_reach_the_parser(place: int, removed: int, put: bytes, tmp_path: Path) -> None:
    altered = TRAIN[:place] + put + TRAIN[place + removed :]
    if altered != TRAIN:
        with pytest.raises(DamagedFileError, match=r"train\.mat.*MD5 differs"):
            read(tmp_path, altered, checked=TRAIN)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="larger than"):
        read(tmp_path, bytes(10_000))

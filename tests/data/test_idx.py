import gzip
import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import datadistill as dd
from datadistill.data.labelled import Labelled
from datadistill.data.readers.idx import read_idx_pairs
from datadistill.utils.errors import DamagedFileError, DatadistillError

COUNTS = ((2, 3), (1, 1))
SIZE = 4
PIXELS = np.arange(7 * SIZE * SIZE, dtype=np.uint8).reshape(7, SIZE, SIZE)
LABELS = np.array([1, 0, 1, 0, 1, 0, 1], np.uint8)


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


CONTENTS = (idx(PIXELS[:5]), idx(LABELS[:5]), idx(PIXELS[5:]), idx(LABELS[5:]))


def write(folder: Path, contents: tuple[bytes, ...] = CONTENTS) -> tuple[Path, ...]:
    paths = tuple(folder / f"{number}.gz" for number in range(4))
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(gzip.compress(content))
    return paths


def read(paths: tuple[Path, ...], contents: tuple[bytes, ...] = CONTENTS) -> tuple[Labelled, Labelled]:
    return read_idx_pairs(paths, tuple(hashlib.sha256(content).hexdigest() for content in contents), COUNTS, SIZE)


def test_four_files_are_read(tmp_path: Path) -> None:
    train, test = read(write(tmp_path))
    assert torch.equal(train.pixels, torch.from_numpy(PIXELS[:5, :, :, None]))
    assert test.pixels.shape == (2, SIZE, SIZE, 1)
    assert train.labels.tolist() == [1, 0, 1, 0, 1]
    assert test.labels.tolist() == [0, 1]


def test_unpacked_files_are_read(tmp_path: Path) -> None:
    paths = write(tmp_path)
    paths[0].write_bytes(CONTENTS[0])
    assert torch.equal(read(paths)[0].pixels, torch.from_numpy(PIXELS[:5, :, :, None]))


def own(folder: Path, prefix: str = "", train: str = "train", ending: str = "") -> Path:
    """IDX files of one's own: 40 and 10 images of two classes."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 8, 8)).astype(np.uint8)
    labels = (np.arange(50) % 2).astype(np.uint8)
    for split, part in ((train, slice(40)), ("t10k" if train == "train" else "test", slice(40, None))):
        for name, array in (("images-idx3", pixels[part]), ("labels-idx1", labels[part])):
            content = idx(array)
            path = folder / f"{prefix}{split}-{name}-ubyte{ending}"
            path.write_bytes(gzip.compress(content) if ending else content)
    return folder


@pytest.mark.parametrize(
    ("place", "prefix", "train", "ending"),
    [
        ("KMNIST/raw", "", "train", ""),
        ("kmnist", "", "train", ".gz"),
        ("EMNIST/raw", "emnist-letters-", "training", ".gz"),
    ],
)
def test_files_of_ones_own(place: str, prefix: str, train: str, ending: str, tmp_path: Path) -> None:
    own(tmp_path / place, prefix, train, ending)
    real = dd.load(tmp_path / place.split("/")[0], say=lambda text: None)
    assert (len(real.train) + len(real.held_out), len(real.test), real.image_size) == (40, 10, 8)
    assert real.classes == ("0", "1")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda path: path.unlink(), "no images for it"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "train-images-idx3-ubyte is damaged .* holds fewer"),
        (lambda path: path.write_bytes(path.read_bytes() + b"0"), "holds more"),
        (lambda path: path.write_bytes(idx(np.zeros((40, 8, 8), np.uint8), kind=9)), "does not begin as one"),
        (lambda path: path.write_bytes(b"\0\0\x08\x03" + b"\xff" * 12), "claims"),
        (lambda path: path.write_bytes(b"\0\0\x08\x03\0"), "damaged"),
        (lambda path: path.write_bytes(b"\0\0\x08"), "damaged"),
        (lambda path: path.write_bytes(gzip.compress(path.read_bytes())[:-20]), "damaged"),
        (lambda path: own(path.parent, "emnist-letters-"), "one training split is needed"),
    ],
)
def test_damage_of_ones_own_is_one_sentence(change: Any, sentence: str, tmp_path: Path) -> None:
    change(own(tmp_path / "mine") / "train-images-idx3-ubyte")
    with pytest.raises(DatadistillError, match=sentence):
        dd.load(tmp_path / "mine", say=lambda text: None)


def test_whoever_compressed_it(tmp_path: Path) -> None:
    paths = write(tmp_path)
    paths[0].write_bytes(gzip.compress(CONTENTS[0], compresslevel=1, mtime=12345))
    assert len(read(paths)[0].labels) == 5


@pytest.mark.parametrize(
    ("number", "content", "sentence"),
    [
        (0, CONTENTS[0][:-1], "does not hold"),
        (0, CONTENTS[0] + b"0", "does not hold"),
        (0, b"\0\0\x09" + CONTENTS[0][3:], "does not hold"),
        (1, idx(LABELS[:4]), "does not hold"),
        (1, idx(np.array([1, 0, 1, 0, 2], np.uint8)), "not the 2 classes"),
        (3, idx(np.array([0, 0], np.uint8)), "other numbers of images"),
    ],
)
def test_damage_is_named(number: int, content: bytes, sentence: str, tmp_path: Path) -> None:
    contents = tuple(content if index == number else whole for index, whole in enumerate(CONTENTS))
    paths = write(tmp_path, contents)
    with pytest.raises(DamagedFileError, match=rf"{number}\.gz is damaged.*{sentence}"):
        read(paths, contents)


def test_an_altered_pixel_is_found(tmp_path: Path) -> None:
    altered = CONTENTS[0][:-1] + bytes([CONTENTS[0][-1] ^ 1])
    with pytest.raises(DamagedFileError, match=r"0\.gz.*SHA-256 differs"):
        read(write(tmp_path, (altered, *CONTENTS[1:])))


def test_a_truncated_or_a_huge_file_is_found(tmp_path: Path) -> None:
    paths = write(tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:-9])
    with pytest.raises(DamagedFileError, match="cannot be unpacked"):
        read(paths)
    paths[2].write_bytes(bytes(100_000))
    with pytest.raises(DamagedFileError, match="larger than"):
        read(paths)
    paths[2].unlink()
    with pytest.raises(DatadistillError, match="No such file"):
        read(paths)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    paths = write(tmp_path)
    # Within the packed file's limit, and a thousand times the array that should be in it.
    bomb = gzip.compress(bytes(3_000_000))
    assert len(bomb) < 4096
    paths[1].write_bytes(bomb)
    with pytest.raises(DamagedFileError, match="does not hold"):
        read(paths)


@given(raw=st.binary(max_size=200), packed=st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused(raw: bytes, packed: bool, tmp_path: Path) -> None:
    paths = write(tmp_path)
    paths[1].write_bytes(gzip.compress(raw) if packed else raw)
    with pytest.raises(DamagedFileError, match=r"1\.gz"):
        read(paths)

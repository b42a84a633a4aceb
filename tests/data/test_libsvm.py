import bz2
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datadistill.data.labelled import Labelled
from datadistill.data.readers.libsvm import read_libsvm
from datadistill.utils.errors import DamagedFileError

COUNTS = ((1, 2), (1, 1))
TRAIN = "2 1:-1 2:1 3:0 4:-0.998\n1 1:-1.000 2:-1.000 3:1.000 4:-1.000 \n2 1:0.5 2:0.5 3:0.5 4:0.5\n"
TEST = "1 1:-1 2:-1 3:-1 4:-1\n2 1:1 2:1 3:1 4:1\n"


def read(folder: Path, train: str | bytes = TRAIN, test: str = TEST) -> tuple[Labelled, Labelled]:
    paths = (folder / "usps.bz2", folder / "usps.t.bz2")
    paths[0].write_bytes(bz2.compress(train if isinstance(train, bytes) else train.encode()))
    paths[1].write_bytes(bz2.compress(test.encode()))
    return read_libsvm(paths, COUNTS, 2)


def test_values_become_bytes_row_by_row(tmp_path: Path) -> None:
    train, test = read(tmp_path)
    assert train.pixels[0, :, :, 0].tolist() == [[0, 255], [128, 0]]
    assert train.pixels[2].unique().tolist() == [191]
    assert train.labels.tolist() == [1, 0, 1]
    assert test.pixels.flatten(1).tolist() == [[0] * 4, [255] * 4]
    assert test.labels.tolist() == [0, 1]


DAMAGE = {
    "no text": ("", "images of 4 values"),
    "a line is missing": (TRAIN[: TRAIN.index("\n") + 1], "does not hold 3 images"),
    "the last value is missing": (TRAIN[: TRAIN.rindex(" ")] + "\n", "does not hold 3 images"),
    "a value is missing, another is twice": (TRAIN.replace("2:1 3:0", "2:1 2:0"), "format"),
    "a value too many": (TRAIN.replace("4:0.5", "4:0.5 5:0.5"), "format"),
    "indices from 0": (TRAIN.replace("1:0.5", "0:0.5"), "format"),
    "words": ("two one three", "format"),
    "a value beyond the range": (TRAIN.replace("0.998", "1.001"), "between -1 and 1"),
    "a value that is no number": (TRAIN.replace("-0.998", "nan"), "between -1 and 1"),
    "a label beyond the range": ("3" + TRAIN[1:], "labels are not 1 to 2"),
    "a label that is no class": ("1.5" + TRAIN[1:], "labels are not 1 to 2"),
    "a label that is no number": ("nan" + TRAIN[1:], "labels are not 1 to 2"),
    "classes of other sizes": ("1" + TRAIN[1:], "other numbers of images"),
    "more text than there can be": (TRAIN + "#" * 1000, "unpacks to more"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, tmp_path: Path) -> None:
    text, sentence = DAMAGE[name]
    with pytest.raises(DamagedFileError, match=rf"usps\.bz2 is damaged.*{sentence}"):
        read(tmp_path, text)


def test_a_truncated_or_a_huge_file_is_found(tmp_path: Path) -> None:
    read(tmp_path)
    path = tmp_path / "usps.t.bz2"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DamagedFileError, match=r"usps\.t\.bz2.*cannot be unpacked"):
        read_libsvm((tmp_path / "usps.bz2", path), COUNTS, 2)
    path.write_bytes(bytes(10_000))
    with pytest.raises(DamagedFileError, match=r"usps\.t\.bz2.*larger than"):
        read_libsvm((tmp_path / "usps.bz2", path), COUNTS, 2)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    read(tmp_path)
    paths = (tmp_path / "usps.bz2", tmp_path / "usps.t.bz2")
    paths[0].write_bytes(bz2.compress(bytes(20_000_000)))
    tracemalloc.start()
    try:
        with pytest.raises(DamagedFileError, match="unpacks to more"):
            read_libsvm(paths, COUNTS, 2)
        # The unpacker itself takes some.
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@given(raw=st.binary(max_size=200), packed=st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused(raw: bytes, packed: bool, tmp_path: Path) -> None:
    read(tmp_path)
    path = tmp_path / "usps.t.bz2"
    path.write_bytes(bz2.compress(raw) if packed else raw)
    with pytest.raises(DamagedFileError, match=r"usps\.t\.bz2"):
        read_libsvm((tmp_path / "usps.bz2", path), COUNTS, 2)


@given(
    place=st.integers(0, len(TRAIN) - 1), removed=st.integers(0, 5), put=st.text("0123456789:.-+e \n#qidna", max_size=6)
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_altered_text_is_refused_or_means_three_images(place: int, removed: int, put: str, tmp_path: Path) -> None:
    try:
        train, _ = read(tmp_path, TRAIN[:place] + put + TRAIN[place + removed :])
    except DamagedFileError:
        return
    assert train.pixels.shape == (3, 2, 2, 1)
    assert sorted(train.labels.tolist()) == [0, 1, 1]

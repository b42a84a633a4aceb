import gzip
import hashlib
import io
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datadistill.data.readers.cifar import PIXELS, Binary
from datadistill.data.readers.cifar_python import Python, parse_batch
from datadistill.utils.errors import DamagedFileError

COUNTS = ((2, 1, 1), (1, 1, 0))
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 0, 1, 0], np.uint8)
SLICES = (slice(0, 2), slice(2, 4), slice(4, 6))


def records(part: slice, before: bytes = b"") -> bytes:
    """Records of the binary version, with a superclass before the class or without."""
    pairs = zip(LABELS[part], IMAGES[part], strict=True)
    return b"".join(before + bytes([label]) + image.tobytes() for label, image in pairs)


def sha256(contents: list[bytes]) -> tuple[str, ...]:
    return tuple(hashlib.sha256(content).hexdigest() for content in contents)


def md5(contents: list[bytes]) -> tuple[str, ...]:
    return tuple(hashlib.md5(content).hexdigest() for content in contents)


TEN = [records(part) for part in SLICES]
BINARY = Binary(("one.bin", "two.bin"), "test.bin", 1, COUNTS, sha256(TEN))


def write(folder: Path, names: tuple[str, ...], contents: list[bytes]) -> tuple[Path, ...]:
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_bytes(content)
    return tuple(folder / name for name in names)


def test_the_binary_version(tmp_path: Path) -> None:
    train, test = BINARY.read(write(tmp_path, BINARY.names, TEN))
    assert torch.equal(train.pixels, torch.from_numpy(IMAGES[:4]).permute(0, 2, 3, 1))
    assert torch.equal(test.pixels, torch.from_numpy(IMAGES[4:]).permute(0, 2, 3, 1))
    assert train.labels.tolist() == [0, 2, 1, 0]
    assert test.labels.tolist() == [1, 0]


def test_the_class_comes_after_the_superclass(tmp_path: Path) -> None:
    hundred = replace(BINARY, train=("train.bin",), label_bytes=2, sha256=())
    contents = [records(slice(0, 4), b"\x13"), records(slice(4, 6), b"\x13")]
    train, _ = hundred.read(write(tmp_path, hundred.names, contents))
    assert train.labels.tolist() == [0, 2, 1, 0]
    assert torch.equal(train.pixels, torch.from_numpy(IMAGES[:4]).permute(0, 2, 3, 1))


DAMAGE = {
    "truncated": (TEN[0][:-1], "two.bin", r"one\.bin.*6,145 bytes instead of 6,146"),
    "too long": (TEN[0] + b"0", "two.bin", r"one\.bin.*larger than 6,146"),
    "empty": (b"", "two.bin", r"one\.bin.*0 bytes instead"),
    "an altered pixel": (TEN[0][:-1] + bytes([TEN[0][-1] ^ 1]), "two.bin", r"one\.bin.*SHA-256 differs"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, tmp_path: Path) -> None:
    content, _, sentence = DAMAGE[name]
    with pytest.raises(DamagedFileError, match=sentence):
        BINARY.read(write(tmp_path, BINARY.names, [content, *TEN[1:]]))


@pytest.mark.parametrize(("label", "sentence"), [(3, "not the 3 classes"), (1, "other numbers of images")])
def test_labels_are_checked_without_a_checksum(label: int, sentence: str, tmp_path: Path) -> None:
    contents = [bytes([label]) + TEN[0][1:], *TEN[1:]]
    with pytest.raises(DamagedFileError, match=sentence):
        replace(BINARY, sha256=()).read(write(tmp_path, BINARY.names, contents))


def archive(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


MEMBERS = {f"ten/{name}": content for name, content in zip(BINARY.names, TEN, strict=True)}


def read_archive(folder: Path, packed: bytes) -> list[int]:
    (folder / "ten.tar.gz").write_bytes(packed)
    checksum = hashlib.md5(packed).hexdigest()
    train, test = BINARY.read_archive((folder / "ten.tar.gz",), "ten", checksum)
    assert torch.equal(train.pixels, torch.from_numpy(IMAGES[:4]).permute(0, 2, 3, 1))
    return train.labels.tolist() + test.labels.tolist()


def test_the_archive_is_read_and_never_extracted(tmp_path: Path) -> None:
    more = {"../escaped": b"x", "/tmp/escaped": b"x", "ten/readme.html": b"x"}
    assert read_archive(tmp_path, archive(more | MEMBERS)) == LABELS.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["ten.tar.gz"]
    assert not (tmp_path.parent / "escaped").exists()


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    for members in (
        {name: content for name, content in MEMBERS.items() if name != "ten/two.bin"},
        {name: content[: -(name == "ten/two.bin")] or content for name, content in MEMBERS.items()},
        {name.replace("ten/two", "./ten/../ten/two"): content for name, content in MEMBERS.items()},
    ):
        with pytest.raises(DamagedFileError, match=r"ten\.tar\.gz.*no ten/two\.bin of 6,146 bytes"):
            read_archive(tmp_path, archive(members))
    path = tmp_path / "ten.tar.gz"
    with pytest.raises(DamagedFileError, match="MD5 differs"):
        BINARY.read_archive((path,), "ten", "0" * 32)


def test_an_archive_of_the_right_md5_is_checked_by_what_is_in_it(tmp_path: Path) -> None:
    """Two archives can be made that have one MD5."""
    altered = MEMBERS | {"ten/two.bin": DAMAGE["an altered pixel"][0]}
    with pytest.raises(DamagedFileError, match=r"ten\.tar\.gz.*SHA-256 differs"):
        read_archive(tmp_path, archive(altered))


@pytest.mark.parametrize("to", ["/etc/passwd", "file"])
def test_a_link_in_an_archive_is_not_followed(to: str, tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        target = tarfile.TarInfo("ten/file")
        target.size = len(TEN[0])
        tar.addfile(target, io.BytesIO(TEN[0]))
        for name in MEMBERS:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = tarfile.SYMTYPE, to, len(MEMBERS[name])
            tar.addfile(info)
    with pytest.raises(DamagedFileError, match=r"no ten/one\.bin"):
        read_archive(tmp_path, file.getvalue())


@given(raw=st.binary(max_size=1200), packed=st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused_as_an_archive(raw: bytes, packed: bool, tmp_path: Path) -> None:
    """Even where the checksum is right, as it is here."""
    with pytest.raises(DamagedFileError, match=r"ten\.tar\.gz"):
        read_archive(tmp_path, gzip.compress(raw) if packed else raw)


@given(cut=st.integers(0, 2000))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_truncated_archive_is_refused(cut: int, tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match=r"ten\.tar\.gz"):
        read_archive(tmp_path, archive(MEMBERS)[: -cut - 100])


def short(text: bytes) -> bytes:
    """A string as Python 2 pickles it."""
    return b"U" + bytes([len(text)]) + text


def python2(part: slice, key: bytes = b"labels", columns_first: bytes = b"\x89") -> bytes:
    """A batch as Python 2 pickled it with protocol 2: an array of unsigned bytes, and labels in a list."""
    rows = IMAGES[part].reshape(-1, PIXELS)
    dtype = (
        b"cnumpy\ndtype\n"
        + short(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + short(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    state = b"(K\x01K" + bytes([len(rows)]) + b"M\x00\x0c\x86" + dtype + columns_first
    state += b"T" + rows.nbytes.to_bytes(4, "little") + rows.tobytes() + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R" + state
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in LABELS[part]) + b"e"
    return (
        b"\x80\x02}("
        + short(b"batch_label")
        + short(b"one of 2")
        + short(key)
        + labels
        + short(b"data")
        + array
        + b"u."
    )


BATCHES = [python2(part) for part in SLICES]
PYTHON = Python(("one", "two"), "test", b"labels", COUNTS, md5(BATCHES))


def test_what_is_written_here_is_what_numpy_understands() -> None:
    batch = pickle.loads(BATCHES[0], encoding="bytes")
    assert np.array_equal(batch[b"data"], IMAGES[:2].reshape(-1, PIXELS))


def test_the_python_version_is_the_binary_one(tmp_path: Path) -> None:
    train, test = PYTHON.read(write(tmp_path, PYTHON.names, BATCHES))
    same = BINARY.read(write(tmp_path, BINARY.names, TEN))
    for mine, other in ((train, same[0]), (test, same[1])):
        assert torch.equal(mine.pixels, other.pixels)
        assert torch.equal(mine.labels, other.labels)


def test_a_pickle_is_parsed_only_if_it_is_the_official_one(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match=r"one.*MD5 differs"):
        PYTHON.read(write(tmp_path, PYTHON.names, [pickle.dumps({}), *BATCHES[1:]]))
    with pytest.raises(DamagedFileError, match=r"one.*larger than"):
        PYTHON.read(write(tmp_path, PYTHON.names, [bytes(100_000), *BATCHES[1:]]))


ran: list[str] = []


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return ran.append, ("ran",)


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("import test_cifar; test_cifar.ran.append('ran')",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("what", [Evil(), Hostile(), {b"data": Evil(), b"labels": []}, np.zeros(3, object), Path("x")])
def test_no_pickle_runs_anything(what: object, protocol: int) -> None:
    with pytest.raises(DamagedFileError, match="not a batch of CIFAR"):
        parse_batch(pickle.dumps(what, protocol), b"labels", Path("file"))
    assert not ran


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        BATCHES[0][:-1],
        BATCHES[0][:1000],
        python2(SLICES[0], columns_first=b"\x88"),
        python2(SLICES[0], key=b"coarse_labels"),
        BATCHES[0].replace(b"K\x02M\x00\x0c\x86", b"K\x03M\x00\x0c\x86"),
        BATCHES[0].replace(short(b"u1"), short(b"O8")),
        BATCHES[0].replace(b"numpy\nndarray", b"numpy\nmemmap!"),
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": 3, b"labels": []}),
    ],
)
def test_damaged_batches_are_refused(raw: bytes) -> None:
    assert raw != BATCHES[0]
    with pytest.raises(DamagedFileError, match="file is damaged"):
        parse_batch(raw, b"labels", Path("file"))


def test_as_many_labels_as_images() -> None:
    raw = BATCHES[0].replace(b"](K\x00K\x02e", b"](K\x00e")
    with pytest.raises(DamagedFileError, match="one label for each image"):
        parse_batch(raw, b"labels", Path("file"))

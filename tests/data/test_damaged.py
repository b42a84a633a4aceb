"""Damaged folders and NPZ files: each ends in one sentence and exit code 1 or 2, and soon."""

import io
import os
import struct
import zipfile
import zlib
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from fuzz import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datadistill.cli.main import main

hundreds = settings(
    max_examples=examples(300),
    deadline=timedelta(seconds=20),
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    database=None,
)
pytestmark = pytest.mark.fuzz

SUFFIXES = (".png", ".jpg", ".gif", ".bmp", ".tif", ".webp", ".ppm")


def ends_well(place: Path, *flags: str) -> str:
    """What the command says; nothing but a sentence, whether it is the data's fault or, if that is sound, ours."""
    said, printed = io.StringIO(), io.StringIO()
    before = sorted(os.listdir(place.parent))
    with redirect_stderr(said), redirect_stdout(printed):
        code = main(["distill", "--dataset", str(place), "--model", "no-such-model", *flags])
    last = said.getvalue().splitlines()[-1]
    assert code in (1, 2), said.getvalue()
    assert last.startswith("datadistill: ")
    assert "Traceback" not in said.getvalue()
    assert printed.getvalue() == ""
    assert sorted(os.listdir(place.parent)) == before
    return last


def picture(suffix: str, seed: int) -> bytes:
    """A small picture with contrast."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper()))
    return file.getvalue()


PICTURES = {suffix: [picture(suffix, seed) for seed in range(2)] for suffix in SUFFIXES}


def claims(width: int, height: int) -> bytes:
    """A PNG whose header claims a size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    parts = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@st.composite
def altered(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes that were cut, changed, filled up, or replaced."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("cut", "change", "insert", "blank", "replace")))
        at = draw(st.integers(0, max(0, len(content) - 1)))
        if kind == "cut":
            del content[at:]
        elif kind == "change" and content:
            content[at] = draw(st.integers(0, 255))
        elif kind == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "blank":
            content[at : at + 16] = bytes(len(content[at : at + 16]))
        else:
            content = bytearray(draw(st.binary(max_size=64)))
    return bytes(content)


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, int, bytes, str]:
    """What happens to which file."""
    kind = draw(st.sampled_from(("altered", "claims", "empty", "gone", "folder", "loop", "nowhere", "pipe", "renamed")))
    suffix = draw(st.sampled_from(SUFFIXES))
    content = b""
    if kind == "altered":
        content = draw(altered(PICTURES[suffix][0]))
    if kind == "claims":
        content = claims(draw(st.integers(0, 2**31 - 1)), draw(st.integers(0, 2**31 - 1)))
    return kind, draw(st.integers(0, 15)), content, draw(names) + suffix


def spoil(files: list[Path], damage: tuple[str, int, bytes, str]) -> None:
    """Do one damage to one of the files."""
    kind, number, content, name = damage
    path = files[number % len(files)]
    if path.is_dir() or not (path.is_file() or path.is_symlink()):
        return
    path.unlink()
    place = path.with_suffix(Path(name).suffix)
    if kind in ("altered", "claims", "empty"):
        place.write_bytes(content)
    elif kind == "folder":
        place.mkdir(exist_ok=True)
    elif kind in ("loop", "nowhere"):
        path.symlink_to(path.name if kind == "loop" else "no/such/file")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "renamed":
        other = path.parent.parent / name
        other.mkdir(exist_ok=True)
        (other / name).write_bytes(PICTURES[".png"][0])


@hundreds
@given(
    st.lists(damages(), min_size=1, max_size=6),
    st.sampled_from(SUFFIXES),
    st.lists(st.sampled_from(("--skip-unreadable", "--size=12", "--channels=1")), unique=True),
    st.booleans(),
)
def test_damaged_folders(
    found: list[tuple[str, int, bytes, str]], suffix: str, flags: list[str], has_splits: bool
) -> None:
    with TemporaryDirectory() as place:
        folder, files = Path(place, "folder"), list[Path]()
        for number in range(16):
            split = ("train" if number < 12 else "test") if has_splits else "."
            path = folder / split / "ab"[number % 2] / f"{number}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(PICTURES[suffix][number % 2])
            files.append(path)
        for damage in found:
            spoil(files, damage)
        ends_well(folder, *flags)


def arrays(compressed: bool) -> bytes:
    file = io.BytesIO()
    rng = np.random.default_rng(0)
    made = {
        "x_train": rng.integers(0, 256, (12, 4, 4)).astype(np.uint8),
        "y_train": np.arange(12) % 2,
        "x_test": rng.integers(0, 256, (4, 4, 4)).astype(np.uint8),
        "y_test": np.arange(4) % 2,
        "classes": np.array(["a", "b"]),
    }
    (np.savez_compressed if compressed else np.savez)(file, **made)  # type: ignore[operator]
    return file.getvalue()


WHOLE = {compressed: arrays(compressed) for compressed in (False, True)}


@st.composite
def damaged_archives(draw: st.DrawFn) -> bytes:
    """An archive that was altered; or one whose members were, with checksums that are right all the same."""
    whole = WHOLE[draw(st.booleans())]
    if draw(st.booleans()):
        return draw(altered(whole))
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(file, "w") as new:
        spoilt = draw(st.sets(st.sampled_from(old.namelist()), min_size=1))
        for name in old.namelist():
            new.writestr(name, draw(altered(old.read(name))) if name in spoilt else old.read(name))
    return file.getvalue()


@hundreds
@given(damaged_archives())
def test_damaged_npz(content: bytes) -> None:
    with TemporaryDirectory() as place:
        path = Path(place, "data.npz")
        path.write_bytes(content)
        ends_well(path)


def npy(header: str, content: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    """An array's file with any header at all."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text + content


edges = st.sampled_from((0, 1, 2, 4, 12, 2**31, 2**62, 10**30, -1)) | st.integers(0, 20)
headers = st.builds(
    lambda kind, order, shape: f"{{'descr': {kind!r}, 'fortran_order': {order!r}, 'shape': {tuple(shape)!r}}}",
    st.sampled_from(
        ("|u1", "<f4", "<f8", "|O", "<U3", "|S0", "<U0", "|V0", ">i8", "<M8[s]", "<c16", "|b1", "nonsense")
    ),
    st.sampled_from((True, False, 1, "x")),
    st.lists(edges, max_size=5),
) | st.sampled_from(
    ("", "{", "(" * 9000, "{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (2,)}", "1" * 9999)
)


often_plain = st.sampled_from(((1, 0), (1, 0), (1, 0), (2, 0), (3, 0), (9, 9)))
often_stored = st.sampled_from((0, 0, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))


@hundreds
@given(st.lists(st.tuples(headers, st.binary(max_size=200), often_plain), min_size=4, max_size=5), often_stored)
def test_headers_that_lie(found: list[tuple[str, bytes, tuple[int, int]]], compression: int) -> None:
    with TemporaryDirectory() as place:
        path = Path(place, "data.npz")
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, parts in zip(("x_train", "y_train", "x_test", "y_test", "classes"), found, strict=False):
                archive.writestr(f"{name}.npy", npy(*parts))
        ends_well(path)


kinds = st.sampled_from(("u1", "i2", "i8", "f4", "f8", "b", "U2", "S2", "c8", "M8[s]", "O"))
shapes = st.lists(st.sampled_from((0, 1, 2, 3, 4, 12)), max_size=5)
values = st.sampled_from((0, 1, 7, 255, 256, -1, 0.5, float("nan"), float("inf")))


@st.composite
def any_array(draw: st.DrawFn, usual: tuple[int, ...] = (12,)) -> np.ndarray:
    """An array of any shape, type and content."""
    array = np.zeros(draw(st.just(usual) | st.just(usual) | shapes.map(tuple)), draw(kinds))
    if array.size and array.dtype.kind in "uifb":
        with np.errstate(all="ignore"):
            array.flat[: draw(st.integers(1, array.size))] = np.array([draw(values)]).astype(array.dtype)
    return array


@hundreds
@given(
    st.fixed_dictionaries(
        {"x_train": any_array((12, 4, 4)), "y_train": any_array() | st.just(np.arange(12) % 2)},
        optional={"x_test": any_array((12, 4, 4)), "y_test": any_array(), "classes": any_array((2,)), "x": any_array()},
    )
)
def test_arrays_that_make_no_sense(made: dict[str, np.ndarray]) -> None:
    with TemporaryDirectory() as place:
        path = Path(place, "data.npz")
        np.savez(path, **made)  # type: ignore[arg-type]
        ends_well(path)

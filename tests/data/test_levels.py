"""What numbers mean that are not 0 to 255: nothing is lost in silence, whatever bits or range they come in."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

import datadistill as dd

Y = np.arange(40) % 2
UNIT = np.random.default_rng(0).random((40, 16, 16))


def levels(real: dd.RealData) -> int:
    return len(torch.unique(real.train.images))


def heard_from_arrays(x: Any, **options: Any) -> tuple[dd.RealData, list[str]]:
    heard = list[str]()
    return dd.from_arrays(x, Y, say=heard.append, **options), heard


def png_16(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits in each of its channels, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write(folder: Path, pictures: np.ndarray, alpha: bool = False) -> Path:
    for number, picture in enumerate(pictures):
        place = folder / "ab"[Y[number]] / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        if alpha:
            picture = np.concatenate([picture, np.full_like(picture[..., :1], 65535)], axis=2)
        place.write_bytes(png_16(picture))
    return folder


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_pictures_keep_their_levels_whatever_bits_they_use(
    bits: int, channels: int, alpha: bool, tmp_path: Path
) -> None:
    white = 2**bits - 1
    pictures = np.rint(np.random.default_rng(1).random((40, 8, 8, channels)) * white).astype(np.uint16)
    pictures[0, 0, 0] = white
    heard = list[str]()
    real = dd.load(write(tmp_path / "d", pictures, alpha), say=heard.append)
    expected = dd.from_arrays(np.floor(pictures * 255.0 / white + 0.5).astype(np.uint8), Y, say=heard.append)
    assert torch.equal(real.train.images, expected.train.images)
    assert f"{white} is white" in heard[1]
    assert len(heard) == 4


def test_a_bright_pixel_does_not_take_the_levels_of_all_others_in_silence(tmp_path: Path) -> None:
    pictures = np.rint(UNIT * 1000)[..., None].astype(np.uint16)
    pictures[0, 0, 0] = 65535
    heard = list[str]()
    dd.load(write(tmp_path / "d", pictures), say=heard.append)
    assert any("only 6 of 256 levels are used where white is 65535: say" in line for line in heard)
    real = dd.load(tmp_path / "d", white=1000, say=heard.append)
    assert levels(real) > 200
    assert "1000 is white" in heard[-2]
    assert "values up to 65535: what is above white, 1000, is cut off at it" in heard[-1]


def test_cached_pictures_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datadistill.data.readers.cache.CACHED_FROM", 10)
    first, again = list[str](), list[str]()
    write(tmp_path / "d", np.rint(UNIT * 4095)[..., None].astype(np.uint16))
    dd.load(tmp_path / "d", say=first.append)
    dd.load(tmp_path / "d", say=again.append)
    assert first == again
    assert "4095 is white" in again[1]


@pytest.mark.parametrize("size", [None, 12])
def test_pillow_images_of_16_bits_keep_their_levels(size: int | None) -> None:
    class Pictures(Dataset[Any]):
        def __len__(self) -> int:
            return len(Y)

        def __getitem__(self, index: int) -> Any:
            deep = np.rint(UNIT[index] * 4095)[..., None].astype(np.uint16)
            grey = Image.fromarray(deep[..., 0])
            return (grey if index else Image.open(io.BytesIO(png_16(np.repeat(deep, 3, 2))))), int(Y[index])

    heard = list[str]()
    real = dd.from_datasets(Pictures(), size=size, say=heard.append)
    assert levels(real) > 200
    assert "4095 is white" in heard[1]


@pytest.mark.parametrize("hair", [1e-7, 1e-3])
def test_floats_a_hair_outside_of_their_range_are_those_in_it(hair: float) -> None:
    x = UNIT.copy()
    x[0, 0, :2] = 0, 1
    real, heard = heard_from_arrays(x)
    x[0, 0, :2] = -hair, 1 + hair
    other, _ = heard_from_arrays(x)
    assert torch.equal(real.train.images, other.train.images)
    assert "; 1 is white" in heard[1]


UNTOLD = {
    "overshoot": UNIT * 1.3,
    "a dark corner of 0 to 255": UNIT * 20,
    "12 bits in 16, as a part of 1": UNIT / 16,
}


@pytest.mark.parametrize("name", UNTOLD)
def test_floats_that_cannot_be_told_are_asked(name: str) -> None:
    with pytest.raises(dd.RequestError, match=r"x_train has values from .* --white \(white=\.\.\.\)"):
        heard_from_arrays(UNTOLD[name])
    real, heard = heard_from_arrays(UNTOLD[name], white=float(UNTOLD[name].max()))
    assert levels(real) == 256
    assert "is white" in heard[1]


def test_splits_in_two_ranges_are_refused() -> None:
    with pytest.raises(
        dd.RequestError, match=r"x_train has values up to 0.9.* and x_test up to 25.*: give both in one"
    ):
        dd.from_arrays(UNIT, Y, UNIT * 255, Y, say=lambda text: None)
    with pytest.raises(dd.RequestError, match="x_train has values up to 1 and x_test"):
        dd.from_arrays((UNIT > 0.5).astype(np.uint8), Y, UNIT > 0.5, Y, say=lambda text: None)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32, np.int64])
def test_arrays_of_more_than_8_bits_keep_their_levels(kind: type) -> None:
    real, heard = heard_from_arrays(np.rint(UNIT * 4095).astype(kind))
    assert levels(real) == 256
    assert heard[1].endswith("4095 is white")


def test_white_of_8_bits_is_never_asked() -> None:
    plain, _ = heard_from_arrays((UNIT * 200).astype(np.uint8))
    real, heard = heard_from_arrays((UNIT * 200).astype(np.uint8), white=200)
    assert torch.equal(plain.train.images, real.train.images)
    assert "white is 255, whatever was asked" in heard[-1]


@pytest.mark.skipif(os.environ.get("DATADISTILL_SHAPES") == "1", reason="types are refused before")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"white": 0}, "white is 0, but must be"),
        ({"white": 10**5000}, "white is out of reach, but must be"),
        ({"white": "1"}, "white is '1', but must be a number"),
        ({"size": 8.5}, "size is 8.5, but must be a whole number"),
        ({"channels": "grey"}, "channels is 'grey', but must be a whole number"),
    ],
)
def test_options_that_are_none(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(dd.RequestError, match=sentence):
        heard_from_arrays(UNIT, **options)

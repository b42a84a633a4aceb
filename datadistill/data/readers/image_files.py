"""Decoder of image files, to one size and number of channels; nothing that a file claims is believed."""

import io
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from datadistill.data.levels import Numbers, eight_bit, remarks_on, white_of_whole
from datadistill.data.options import Options, check_room
from datadistill.utils.errors import DamagedFileError, RequestError, reason_of, some_of
from datadistill.utils.progress import Bar

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read. Pillow knows more, one of which runs another program (EPS)."""

MOST_PIXELS = 2**26
"""Larger images are refused before they are decoded: a few bytes can claim any size."""

MOST_BYTES = 2**28
"""Larger files are no images that anybody trains on."""

MOST_WHITE = 65535
"""White of a picture of 16 bits that says nothing else."""

_PROPOSED = (128, 64, 32)
_NAMED = 3


@dataclass(frozen=True, eq=False)
class Pictures:
    """Encoded images, wherever they lie.

    Attributes:
        names: what an error calls them.
        read: gives the files, or their contents, in the order of the names.
        place: what holds them, for people and for the cache.
        state: changes whenever one of them does.
    """

    names: tuple[str, ...]
    read: Callable[[], Sequence[Path | bytes]]
    place: str
    state: str


@dataclass(frozen=True, eq=False)
class Decoded:
    """Pixels of many images.

    Attributes:
        pixels: of all that could be read.
        kept: which these are, by index.
        white: the number that became white in those of more than 8 bits; None where there are none.
        remarks: sentences on what 8 bits do to them.
    """

    pixels: UInt8[Tensor, "n h w c"]
    kept: tuple[int, ...]
    white: int | float | None = None
    remarks: tuple[str, ...] = ()

    @property
    def whites(self) -> tuple[int | float, ...]:
        """`white` as a tuple, empty where there is none."""
        return () if self.white is None else (self.white,)


def decode(pictures: Pictures, options: Options, bar: Bar) -> Decoded:
    """Decode images on all cores.

    Args:
        pictures: what to decode.
        options: size, channels, and what to do about files that cannot be read.
        bar: shows progress.

    Raises:
        RequestError: they have different sizes, and none was asked for.
        DamagedFileError: some cannot be read, and are not to be skipped; or none can.
    """
    sources, failed = pictures.read(), dict[int, str]()
    with warnings.catch_warnings(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        warnings.simplefilter("ignore")  # Pillow warns of what is merely odd; what it cannot read, it raises
        size = options.size
        if size is None:
            sizes = _sizes(pool, sources, failed)
            if not sizes:
                _refuse(pictures, failed, options)
            size = common_size(sizes, f"the images of {pictures.place}")
        channels = options.channels or 3
        check_room(pictures.place, len(sources) * size * size * channels)
        pixels = np.empty((len(sources), size, size, channels), np.uint8)
        decoding = _Decoding(sources, pictures.names, pixels, failed)
        with bar(f"decoding {pictures.place}", len(sources)) as count:
            decoding.run(pool, [index for index in range(len(sources)) if index not in failed], None, count)
        white = options.white
        if decoding.depths:  # what white is, only all of them together tell
            white = white or white_of_whole(list(decoding.depths.values()))
            decoding.run(pool, list(decoding.depths), white)
    _refuse(pictures, failed, options)
    kept = [index for index in range(len(sources)) if index not in failed]
    chosen = pixels if len(kept) == len(sources) else pixels[kept]
    if options.channels is None and decoding.is_grey:
        chosen = np.ascontiguousarray(chosen[..., :1])
    deep = {index: part for index, part in decoding.depths.items() if index not in failed}
    if not deep or white is None:
        return Decoded(torch.from_numpy(chosen), tuple(kept))
    remarks = remarks_on([pixels[index] for index in deep], white, list(deep.values()))
    return Decoded(torch.from_numpy(chosen), tuple(kept), white, tuple(remarks))


@dataclass
class _Decoding:
    """Decoding of images into one array.

    Attributes:
        sources: the files, or their contents.
        names: what remarks call them.
        pixels: what is filled.
        failed: why images cannot be read, by index.
        depths: what is known of images of more than 8 bits, by index.
        is_grey: whether the channels of all pixels are equal.
    """

    sources: Sequence[Path | bytes]
    names: Sequence[str]
    pixels: np.ndarray
    failed: dict[int, str]
    depths: dict[int, Numbers] = field(default_factory=dict)
    is_grey: bool = True

    def run(
        self,
        pool: ThreadPoolExecutor,
        indices: Sequence[int],
        white: int | float | None,
        count: Callable[[], None] = lambda: None,
    ) -> None:
        """Decode some; without `white`, what has more than 8 bits is looked at only."""

        def one(index: int) -> tuple[str, bool]:
            try:
                return "", self._fill(index, white)
            except Exception as error:  # decoders of a dozen formats raise anything at all on damaged bytes
                return _reason(error), True

        for index, (reason, is_grey) in zip(indices, pool.map(one, indices), strict=True):
            self.is_grey = self.is_grey and is_grey
            if reason:
                self.failed[index] = reason
            count()

    def _fill(self, index: int, white: int | float | None) -> bool:
        """Decode one image; whether it is grey."""
        image = open_picture(self.sources[index])
        values = deep_values(image)
        if values is not None and white is None:
            self.depths[index] = numbers_of(values, self.names[index])
            return True
        size, channels = self.pixels.shape[1], self.pixels.shape[3]
        picture = upright(image) if values is None else shallow(values, white or MOST_WHITE)
        self.pixels[index] = fitted(picture, size, channels)
        return channels == 1 or not np.ptp(self.pixels[index], axis=-1).any()


def picture_of(pixels: np.ndarray) -> Image.Image:
    """The picture of 8-bit pixels [h, w, c], grey where there is one channel."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))


def to_pixels(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """A picture as people see it, 8 bit: turned upright, on white, its middle square at this size.

    Args:
        image: in any mode but floats.
        size: edge of the square; the shorter edge is resized to it with antialiasing, and the middle is cut out.
        channels: 1 or 3.
    """
    return fitted(upright(image), size, channels)


def fitted(plain: Image.Image, size: int, channels: int) -> np.ndarray:
    """The middle square of a picture in RGB, at this size."""
    if channels == 1:
        plain = plain.convert("L")
    if plain.size != (size, size):
        plain = ImageOps.fit(plain, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(plain).reshape(size, size, channels)


def upright(image: Image.Image) -> Image.Image:
    """A picture in RGB at its own size, as people see it; of 16 bits, 65535 is white.

    Raises:
        ValueError: its pixels are floating point numbers.
    """
    values = deep_values(image)
    if values is not None:
        return shallow(values, MOST_WHITE)
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers")
    return _plain(ImageOps.exif_transpose(image)).convert("RGB")


def deep_values(image: Image.Image) -> np.ndarray | None:
    """The numbers [h, w, c] of a picture of more than 8 bits, turned upright; None of any other.

    Pillow holds 16 bits of grey alone. Of colours and of grey with alpha it keeps the higher byte, so the file is
    decoded once more with the order of the bytes exchanged, which gives the lower one.
    """
    if image.mode.startswith("I"):
        return np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)[..., None]
    if not isinstance(image, ImageFile.ImageFile) or not image.tile or not image.tile[0].args:
        return None  # decoded already, or made by a program
    args = image.tile[0].args
    raw = args if isinstance(args, str) else args[0]
    if not isinstance(raw, str) or image.mode not in ("RGB", "RGBA") or ";16" not in raw:
        return None
    kind, _, order = raw.partition(";16")
    if kind not in ("RGB", "RGBA", "RGBX", "LA"):
        raise ValueError(f"its pixels have 16 bits in an unusual form ({raw})")
    is_low_first = order == "L" or (order == "N" and sys.byteorder == "little")
    content = _content(image)
    if kind == "LA":
        both = _as_raw(content, "RGBA")  # which takes four bytes as they are
        high, low = both[..., 0::2], both[..., 1::2]
    else:
        high, low = _as_raw(content, raw), _as_raw(content, f"{kind};16{'B' if is_low_first else 'L'}")
    values: np.ndarray = high * 256 + low
    return values


def _content(image: ImageFile.ImageFile) -> bytes:
    """The whole file of a picture that was opened, but not decoded."""
    assert image.fp is not None
    at = image.fp.tell()
    image.fp.seek(0)
    content: bytes = image.fp.read()
    image.fp.seek(at)
    return content


def _as_raw(content: bytes, raw: str) -> np.ndarray:
    """A picture's bytes [h, w, c], upright, as if they were stored in this way."""
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    image.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile
    ]
    return np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)


def numbers_of(values: np.ndarray, name: str) -> Numbers:
    """Range of a picture's values, alpha left out.

    Raises:
        ValueError: some are below zero.
    """
    colours = values[..., : 1 if values.shape[2] < 3 else 3]
    low, high = int(colours.min()), int(colours.max())
    if low < 0:
        raise ValueError("its pixels are below zero")
    return Numbers(shown(name), low, high, True, len(np.unique(colours)))


def shallow(values: np.ndarray, white: int | float) -> Image.Image:
    """A picture in RGB from numbers [h, w, c] of more than 8 bits, on white where they have alpha."""
    colours = values.shape[2] - (values.shape[2] in (2, 4))
    pixels = eight_bit(values[..., :colours], white)
    if colours < values.shape[2]:
        pixels = np.concatenate([pixels, eight_bit(values[..., colours:], MOST_WHITE)], axis=2)
    modes = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
    size = (values.shape[1], values.shape[0])
    return _plain(Image.frombytes(modes[values.shape[2]], size, pixels.tobytes())).convert("RGB")


def _plain(image: Image.Image) -> Image.Image:
    """Without transparency."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image


def open_picture(source: Path | bytes) -> Image.Image:
    """A picture whose header has been read, with a size that may be decoded.

    Raises:
        ValueError: it is no file, or too large.
        Exception: whatever Pillow raises on damaged bytes.
    """
    if isinstance(source, Path):
        if not source.is_file():
            raise ValueError("it is no file, or a link that leads nowhere")
        if source.stat().st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
        source = source.read_bytes()  # so that nothing stays open, and no pipe is waited for
    if not source:
        raise ValueError("it is missing or empty")
    image = Image.open(io.BytesIO(source), formats=FORMATS)
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"it claims {image.width:,}x{image.height:,} pixels")
    return image


def _sizes(pool: ThreadPoolExecutor, sources: Sequence[Path | bytes], failed: dict[int, str]) -> list[tuple[int, int]]:
    """Width and height of all that have a header."""

    def one(source: Path | bytes) -> tuple[int, int] | str:
        try:
            return open_picture(source).size
        except Exception as error:  # as above
            return _reason(error)

    sizes = []
    for index, found in enumerate(pool.map(one, sources)):
        if isinstance(found, str):
            failed[index] = found
        else:
            sizes.append(found)
    return sizes


def common_size(sizes: Sequence[tuple[int, int]], what: str) -> int:
    """The one size of square images.

    Raises:
        RequestError: they have several, or are not square; one is proposed.
    """
    if len(set(sizes)) == 1 and sizes[0][0] == sizes[0][1]:
        return sizes[0][0]
    middle = statistics.median(min(size) for size in sizes)
    proposed = next((size for size in _PROPOSED if size <= middle), max(1, int(middle)))
    low, high = min(sizes), max(sizes)
    have = (
        f"have {low[0]}x{low[1]} pixels"
        if low == high
        else f"have from {low[0]}x{low[1]} to {high[0]}x{high[1]} pixels"
    )
    raise RequestError(f"{what} {have}: give one size for all with --size, for instance --size {proposed}")


def _refuse(pictures: Pictures, failed: dict[int, str], options: Options) -> None:
    """Raise an error that names what cannot be read, unless it is to be skipped."""
    if not failed or (options.skip_unreadable and len(failed) < len(pictures.names)):
        return
    some = some_of([f"{shown(pictures.names[index])} ({failed[index]})" for index in sorted(failed)], _NAMED)
    if len(failed) == len(pictures.names):
        raise DamagedFileError(f"none of the images of {pictures.place} can be read: {some}")
    raise DamagedFileError(
        f"{len(failed)} of {len(pictures.names):,} images of {pictures.place} cannot be read: {some}; "
        "mend or remove them, or go on without them with --skip-unreadable"
    )


def shown(name: str) -> str:
    """A file's name as it may stand in a sentence."""
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return text if len(text) <= 120 else f"{text[:60]}…{text[-59:]}"


def _reason(error: Exception) -> str:
    """Reason why a picture cannot be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    if isinstance(error, MemoryError):
        return "too large for the memory"
    return shown(reason_of(error))

"""Image files become pixels: one size, one number of channels; nothing that a file claims is believed."""

import io
import statistics
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from datadistill.data.options import Options, check_room
from datadistill.utils.errors import DamagedFileError, RequestError
from datadistill.utils.progress import Bar

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read. Pillow knows more, one of which runs another program (EPS)."""

MOST_PIXELS = 2**26
"""Larger images are refused before they are decoded: a few bytes can claim any size."""

MOST_BYTES = 2**28
"""Larger files are no images that anybody trains on."""

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
    """

    pixels: UInt8[Tensor, "n h w c"]
    kept: tuple[int, ...]


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

        def one(index: int) -> tuple[str, bool]:
            """Why it cannot be read, or an empty string; and whether it is grey."""
            if index in failed:
                return failed[index], True
            try:
                pixels[index] = to_pixels(_open(sources[index]), size, channels)
            except Exception as error:  # decoders of a dozen formats raise anything at all on damaged bytes
                return _reason(error), True
            return "", channels == 1 or not np.ptp(pixels[index], axis=-1).any()

        grey = True
        with bar(f"decoding {pictures.place}", len(sources)) as count:
            for index, (reason, is_grey) in enumerate(pool.map(one, range(len(sources)))):
                grey = grey and is_grey
                if reason:
                    failed[index] = reason
                count()
    _refuse(pictures, failed, options)
    kept = [index for index in range(len(sources)) if index not in failed]
    chosen = pixels if len(kept) == len(sources) else pixels[kept]
    if options.channels is None and grey:
        chosen = np.ascontiguousarray(chosen[..., :1])
    return Decoded(torch.from_numpy(chosen), tuple(kept))


def to_pixels(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """A picture as people see it, 8 bit: turned upright, on white, its middle square at this size.

    Args:
        image: in any mode but floats.
        size: edge of the square; the shorter edge is resized to it with antialiasing, and the middle is cut out.
        channels: 1 or 3.
    """
    plain = upright(image)
    if channels == 1:
        plain = plain.convert("L")
    if plain.size != (size, size):
        plain = ImageOps.fit(plain, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(plain).reshape(size, size, channels)


def upright(image: Image.Image) -> Image.Image:
    """A picture in RGB at its own size, as people see it."""
    return _plain(ImageOps.exif_transpose(image)).convert("RGB")


def _plain(image: Image.Image) -> Image.Image:
    """Without transparency, in 8 bit."""
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers")
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError("its pixels have more than 16 bits")
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image


def _open(source: Path | bytes) -> Image.Image:
    """A picture whose header has been read, with a size that may be decoded."""
    if isinstance(source, Path):
        if not source.is_file():
            raise ValueError("it is no file, or a link that leads nowhere")
        if source.stat().st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
        source = source.read_bytes()  # so that nothing stays open, and no pipe is waited for
    image = Image.open(io.BytesIO(source), formats=FORMATS)
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"it claims {image.width:,}x{image.height:,} pixels")
    return image


def _sizes(pool: ThreadPoolExecutor, sources: Sequence[Path | bytes], failed: dict[int, str]) -> list[tuple[int, int]]:
    """Width and height of all that have a header."""

    def one(source: Path | bytes) -> tuple[int, int] | str:
        try:
            return _open(source).size
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
    """Name what cannot be read, unless it is to be skipped."""
    if not failed or (options.skip_unreadable and len(failed) < len(pictures.names)):
        return
    some = [f"{shown(pictures.names[index])} ({failed[index]})" for index in sorted(failed)[:_NAMED]]
    more = f" and {len(failed) - len(some)} more" if len(failed) > len(some) else ""
    if len(failed) == len(pictures.names):
        raise DamagedFileError(f"none of the images of {pictures.place} can be read: {', '.join(some)}{more}")
    raise DamagedFileError(
        f"{len(failed)} of {len(pictures.names):,} images of {pictures.place} cannot be read: {', '.join(some)}{more}; "
        "mend or remove them, or go on without them with --skip-unreadable"
    )


def shown(name: str) -> str:
    """A file's name as it may stand in a sentence."""
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return text if len(text) <= 120 else f"{text[:60]}…{text[-59:]}"


def _reason(error: Exception) -> str:
    """Why a picture cannot be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    if isinstance(error, MemoryError):
        return "too large for the memory"
    text = ""
    with suppress(Exception):
        text = getattr(error, "strerror", None) or str(error)
    return shown(" ".join(text.split())) or type(error).__name__

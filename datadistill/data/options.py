"""Options of data, and checks that memory has room for it."""

import math
import numbers
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datadistill.utils.errors import RequestError
from datadistill.utils.fields import Flag

MOST_EDGE = 4096
_AS_MADE = "as the distilled data or the run was made, or not at all"
_BYTES_PER_PIXEL = 6
"""While data is loaded: 8 bit, 32 bit, and copies on the way."""
_BYTES_PER_COVARIANCE = 5 * 8
"""A covariance in float64, its eigenvectors, and what the decomposition works with."""


@dataclass(frozen=True)
class Options:
    """Options of reading images; all but `zca` is for images of one's own.

    Attributes:
        size: your own images: resize the shorter edge to N pixels and cut out the middle.
        channels: your own images: 1 for grey, 3 for colour.
        white: your own images of more than 8 bits, or of floats: the number that is white, such as 4095 or 1.
        skip_unreadable: your own images: go on without files that cannot be read.
        zca: whiten all images after they are normalised: docs/datasets.md.
    """

    size: int | None = field(default=None, metadata=Flag(otherwise="their own size").metadata)
    channels: int | None = field(
        default=None, metadata=Flag(metavar="1|3", otherwise="grey where all pixels are").metadata
    )
    white: int | float | None = field(
        default=None, metadata=Flag(otherwise="inferred from the largest of all").metadata
    )
    skip_unreadable: bool = field(default=False, metadata=Flag(otherwise="say which, and stop").metadata)
    zca: bool = field(default=False, metadata=Flag(otherwise=_AS_MADE).metadata)

    def __post_init__(self) -> None:
        for name in ("size", "channels", "white"):
            value = getattr(self, name)
            kind, word = (numbers.Real, "number") if name == "white" else (numbers.Integral, "whole number")
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise RequestError(f"{name} is {value!r:.60}, but must be a {word}")
            if value is not None:  # NumPy's numbers cannot be written as JSON
                object.__setattr__(self, name, int(value) if isinstance(value, numbers.Integral) else float(value))
        if self.white is not None and not 0 < self.white < 2**32:
            given = f"{self.white:g}" if -(2.0**64) < self.white < 2**64 else "out of reach"
            raise RequestError(f"white is {given}, but must be a number above 0 and below {2**32:,}")
        if self.size is not None and not 1 <= self.size <= MOST_EDGE:
            raise RequestError(f"the size is {self.size}, but must be from 1 to {MOST_EDGE} pixels")
        if self.channels not in (None, 1, 3):
            raise RequestError(f"the channels are {self.channels}, but must be 1 (grey) or 3 (colour)")

    @property
    def flags(self) -> dict[str, Any]:
        """Options that were given, by the names of the attributes."""
        return {name: value for name, value in vars(self).items() if value not in (None, False)}

    def as_words(self) -> list[str]:
        """`flags` as words of a command."""
        words = []
        for name, value in self.flags.items():
            words += ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])]
        return words


def check_room(what: str, count: int) -> None:
    """Refuse more pixels than the machine can hold, before memory is taken.

    Args:
        what: has them.
        count: pixels times channels.

    Raises:
        RequestError: they do not fit.
    """
    needed, there = count * _BYTES_PER_PIXEL, _memory()
    if needed > there:
        raise RequestError(
            f"the images of {what} take {needed / 2**30:,.1f} GiB while they are loaded, and this machine has "
            f"{there / 2**30:,.1f}: give a smaller --size, or fewer images"
        )


def check_room_to_whiten(what: str, shape: Sequence[int]) -> None:
    """Refuse a covariance that the machine cannot hold, before memory is taken.

    Args:
        what: has the images.
        shape: of one image.

    Raises:
        RequestError: it does not fit.
    """
    width = math.prod(shape)
    needed, there = width**2 * _BYTES_PER_COVARIANCE, _memory()
    if needed > there:
        raise RequestError(
            f"whitening {what} takes a matrix of {width:,} x {width:,} and {needed / 2**30:,.1f} GiB, and this "
            f"machine has {there / 2**30:,.1f}: leave out --zca, or take smaller images"
        )


def _memory() -> int:
    """Bytes of memory of this machine; a guess where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 16 * 2**30

"""Range of pixel values: the value that is white, and quantisation to 8 bits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datadistill.utils.errors import RequestError

FEW_LEVELS = 32
"""Pictures with contrast have more; fewer, made of more, are a sign that white is another number."""

HALF_A_LEVEL = 1 / 510
"""Of white: by so much may a number lie outside of the range without becoming another level."""

_BY_HAND = "say which value is white with --white (white=...), such as 1, 255, 4095 or 65535"


@dataclass(frozen=True)
class Numbers:
    """Range of the pixel values of some images.

    Attributes:
        name: what errors call them.
        low: the smallest.
        high: the largest.
        are_whole: whether all are whole numbers.
        distinct: how many different ones there are in an image, or in some of them.
    """

    name: str
    low: int | float
    high: int | float
    are_whole: bool
    distinct: int


def white_of_whole(parts: Sequence[Numbers]) -> int:
    """The largest number of as many bits as the largest of whole numbers takes: 255, 1023, 4095, 65535, ..."""
    return max(255, (1 << int(max(part.high for part in parts)).bit_length()) - 1)


def white_of_floats(parts: Sequence[Numbers]) -> int | float:
    """The number that is white among floats of one dataset.

    Raises:
        RequestError: that cannot be told; the sentence names the flag that says it.
    """
    top = max(parts, key=lambda part: part.high)
    are_whole, are_unit = all(part.are_whole for part in parts), top.high <= 1 + HALF_A_LEVEL
    if are_unit and (are_whole or top.high * 255 >= FEW_LEVELS or top.high <= 0):
        return 1
    if are_whole:
        return white_of_whole([top])
    small = next((part for part in parts if part.high <= 1 + HALF_A_LEVEL and not part.are_whole), None)
    if small is not None and not are_unit:
        raise RequestError(
            f"{small.name} has values up to {small.high:g} and {top.name} up to {top.high:g}: give both in one range"
        )
    if top.high < FEW_LEVELS:
        raise RequestError(
            f"{top.name} has values from {top.low:g} to {top.high:g}, which as parts of 1 or of 255 are hardly images: "
            f"{_BY_HAND}"
        )
    return 255 if top.high <= 255 * (1 + HALF_A_LEVEL) else white_of_whole([top])


def check_range(part: Numbers) -> Numbers:
    """The range itself, if these can be pixels.

    Raises:
        RequestError: some are below zero by more than a hair, or not finite.
    """
    lowest = 0.0 if part.are_whole else -HALF_A_LEVEL * part.high
    if not (lowest <= part.low and part.high < math.inf):  # false for NaN, too
        raise RequestError(
            f"{part.name} has values from {part.low:.10g} to {part.high:.10g}, but pixels are whole numbers from 0, or "
            "floats from 0 to 1 or to 255 (not normalised: that is done here)"
        )
    return part


def eight_bit(values: np.ndarray, white: int | float) -> np.ndarray:
    """Quantisation to 8 bits; what lies outside of 0 to white is cut off.

    Args:
        values: whole numbers or floats.
        white: the one that becomes 255.
    """
    if values.dtype.kind in "iu" and white == int(white) and white < 2**32:
        if values.dtype.itemsize == 1 and white == 255:
            return values.astype(np.uint8)
        whole = np.clip(values, 0, int(white)).astype(np.int64)
        nearest = (510 * whole + int(white)) // (2 * int(white))
    else:
        nearest = np.rint(np.clip(values.astype(np.float64) * (255 / white), 0, 255))
    levels: np.ndarray = nearest.astype(np.uint8)
    return levels


def remarks_on(pixels: Sequence[np.ndarray], white: int | float, parts: Sequence[Numbers]) -> list[str]:
    """Sentences on what 8 bits and this white do to images.

    Args:
        pixels: the images in 8 bit.
        white: the number that became 255.
        parts: what they were before.
    """
    found = []
    top = max(parts, key=lambda part: part.high)
    if top.high > white * (1 + HALF_A_LEVEL):
        found.append(f"{top.name} has values up to {top.high:g}: what is above white, {white:.10g}, is cut off at it")
    used = int(np.count_nonzero(sum(np.bincount(one.reshape(-1), minlength=256) for one in pixels)))
    if used < FEW_LEVELS and used < max(part.distinct for part in parts):
        found.append(f"only {used} of 256 levels are used where white is {white:.10g}: {_BY_HAND}")
    return found

"""Whether something was made for a dataset: its classes, the shape of its images, its normalisation."""

from collections.abc import Sequence

from datadistill.data.real import RealData
from datadistill.data.transforms import Normalization
from datadistill.errors import RequestError

CLOSE = 1e-3
"""Published means and deviations are rounded to three or four digits."""


def check_classes(mine: Sequence[str], real: RealData, what: str = "the distilled data's") -> None:
    """Refuse other class names, or the same ones in another order.

    Raises:
        RequestError: naming what differs.
    """
    if len(mine) != real.num_classes:
        raise RequestError(
            f"{what} classes are {_some(mine)}, {len(mine)} together, but {real.name} has "
            f"{real.num_classes}, {_some(real.classes)}"
        )
    for label, (ours, theirs) in enumerate(zip(mine, real.classes, strict=True)):
        if ours != theirs:
            raise RequestError(
                f"{what} classes are {_some(mine)}, but those of {real.name} are {_some(real.classes)}: "
                f"class {label} is '{ours}' there and '{theirs}' here"
            )


def check_shape(mine: Sequence[int], real: RealData, what: str = "the distilled images") -> None:
    """Refuse images of another shape (channels, height, width).

    Raises:
        RequestError: naming both.
    """
    shape = tuple(real.train.images.shape[1:])
    if tuple(mine) != shape:
        raise RequestError(f"{what} are {tuple(mine)}, but those of {real.name} are {shape}")


def check_normalization(mine: Normalization, real: RealData, what: str = "the distilled data's") -> None:
    """Refuse another mean or deviation.

    Raises:
        RequestError: naming both.
    """
    ours, theirs = (*mine.mean, *mine.std), (*real.normalization.mean, *real.normalization.std)
    if len(ours) != len(theirs) or not all(abs(a - b) <= CLOSE for a, b in zip(ours, theirs, strict=True)):
        raise RequestError(
            f"{what} normalisation, {describe(mine)}, differs from that of {real.name}, {describe(real.normalization)}"
        )


def describe(normalization: Normalization) -> str:
    """Mean and deviation in words."""
    mean, std = (" ".join(f"{value:.4f}" for value in values) for values in (normalization.mean, normalization.std))
    return f"mean {mean} and deviation {std}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(name[:40] for name in names[:12]) + (", ..." if len(names) > 12 else "")

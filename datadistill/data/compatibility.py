"""Compatibility of distilled data and networks with a dataset: classes, image shape, normalisation and whitening."""

from collections.abc import Sequence

from datadistill.data.real import RealData
from datadistill.data.transforms import Normalization, Whitening
from datadistill.utils.errors import RequestError

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


def check_whitened(mine: bool, real: RealData, what: str = "the distilled images") -> None:
    """Refuse whitened images where the dataset's are not, and the other way round.

    Raises:
        RequestError: saying which are.
    """
    if mine != real.is_whitened:
        which, other, advice = ("", "not ", "add") if mine else ("not ", "", "leave out")
        raise RequestError(
            f"{what} are {which}whitened (ZCA), but those of {real.name} are {other}whitened here: {advice} --zca"
        )


def check_whitening(mine: Whitening | None, real: RealData) -> None:
    """Refuse distilled images that were whitened otherwise than the dataset's, or where only one of both was.

    Raises:
        RequestError: saying how they differ.
    """
    check_whitened(mine is not None, real)
    theirs = real.normalization.zca
    if mine is None or theirs is None:
        return
    pairs = ((mine.mean, theirs.mean), (mine.matrix, theirs.matrix))
    apart = max(float((a - b.to(a.device)).abs().max()) for a, b in pairs)
    if not apart <= CLOSE:
        raise RequestError(
            f"the distilled images were whitened by another ZCA matrix than that of {real.name}: numbers differ by "
            f"{apart:.2g}"
        )


def describe(normalization: Normalization) -> str:
    """Mean and deviation in words."""
    mean, std = (" ".join(f"{value:.4f}" for value in values) for values in (normalization.mean, normalization.std))
    return f"mean {mean} and deviation {std}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(name[:40] for name in names[:12]) + (", ..." if len(names) > 12 else "")

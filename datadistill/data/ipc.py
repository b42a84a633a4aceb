"""Images per class: one number, one for each class, or shares of a total as large as the classes are."""

import re
from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Int64
from torch import Tensor

from datadistill.data.real import RealData
from datadistill.utils.errors import RequestError

Ipc: TypeAlias = int | float | tuple[int, ...]
"""One number for all classes, or one for each."""

PROPORTIONAL = "proportional:"


def resolve_ipc(asked: int | float | str | Sequence[int], real: RealData) -> Ipc:
    """Images per class as numbers; one number if all classes get the same.

    Args:
        asked: a number; one for each class, also as text such as `5,10,20`; or `proportional:100`, which shares 100
            images out as the training split's classes have them, at least one to each.
        real: the dataset.

    Raises:
        RequestError: it is neither, or does not fit the classes.
    """
    if isinstance(asked, int | float):
        return asked
    if isinstance(asked, str):
        total = re.fullmatch(PROPORTIONAL + r"(\d{1,9})", asked)
        if total:
            return _same(_shared_out(int(total.group(1)), real))
        if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", asked):
            raise RequestError(
                f"ipc is '{asked}', but must be a number, one for each class as in 5,10,20, or {PROPORTIONAL}100"
            )
        asked = [int(word) for word in asked.split(",")]
    if len(asked) != real.num_classes:
        raise RequestError(f"ipc has {len(asked)} numbers, but {real.name} has {real.num_classes} classes")
    return _same(asked)


def parse_ipc(text: str) -> int | float | str:
    """Images per class from text such as `10`, `0.5`, `5,10,20` or `proportional:100`; the last two stay text.

    Raises:
        RequestError: it asks for nothing.
    """
    if re.fullmatch(PROPORTIONAL + r"\d{1,9}|\d{1,9}(,\d{1,9})+", text):
        return text
    try:
        value = float(text)
    except ValueError as error:
        raise RequestError(f"'{text}' is not a number") from error
    if not 0 < value < 1e9:
        raise RequestError(f"'{text}' is not a positive number less than a billion")
    return int(value) if value == int(value) else value


def _same(shares: Sequence[int]) -> Ipc:
    return shares[0] if len(set(shares)) == 1 else tuple(shares)


def _shared_out(total: int, real: RealData) -> list[int]:
    """Shares of a total, each as near to its class's as whole numbers allow, and at least one."""
    counts = real.train.counts.double()
    if total < len(counts):
        raise RequestError(f"ipc shares out {total} images, but {real.name} has {len(counts)} classes")
    exact = counts * total / counts.sum()
    shares = exact.long().clamp(min=1)
    while int(shares.sum()) != total:
        # The class that is furthest from its share gives or gets one.
        if int(shares.sum()) < total:
            shares[torch.argmax(exact - shares)] += 1
        else:
            shares[torch.argmax(torch.where(shares > 1, shares - exact, -torch.inf))] -= 1
    return [int(share) for share in shares]


def labels_in_order(shares: Sequence[int]) -> Int64[Tensor, "n"]:
    """Labels of distilled images, so that any run of them has nearly every class's share.

    With equal shares: the first image of every class, then the second of every class, and so on.
    """
    places = [((2 * k + 1) / (2 * share), label) for label, share in enumerate(shares) for k in range(share)]
    return torch.tensor([label for _, label in sorted(places)])

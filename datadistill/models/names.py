"""Options spelled in a network's name after its family's, as in `ConvNetD3W128BN` or `VGG11GN`."""

import re
from collections.abc import Collection
from typing import Any

from datadistill.models.convnet import ACTIVATIONS
from datadistill.models.norms import NORMS

_NUMBERS = {"d": "depth", "w": "width"}
_WORDS = {
    **{norm.short.lower(): ("norm", norm.name) for norm in NORMS},
    **{activation: ("activation", activation) for activation in ACTIVATIONS},
    **{"ap": ("pooling", "avg"), "mp": ("pooling", "max"), "np": ("pooling", "none")},
}
_PART = re.compile(rf"_?(?:([{''.join(_NUMBERS)}])(\d{{1,4}})|({'|'.join(_WORDS)}))")


def spelled(name: str, family: str, options: Collection[str]) -> dict[str, Any] | None:
    """The options that a name spells, or None when it is no name of this family.

    After the family's name, in any order and case, with or without `_` between: `D` and `W` with a number for depth
    and width; BN, LN, IN, GN, NN for the norm; `relu`, `leakyrelu`, `sigmoid`, `swish`; `AP`, `MP`, `NP` for average,
    max and no pooling. Each at most once.

    Args:
        name: what somebody typed.
        family: the name of a family.
        options: those that its names may spell: depth, width, norm, activation, pooling.
    """
    rest, found = name.lower(), dict[str, Any]()
    if not rest.startswith(family):
        return None
    rest = rest.removeprefix(family)
    while rest:
        match = _PART.match(rest)
        if match is None:
            return None
        letter, number, word = match.groups()
        option, value = (_NUMBERS[letter], int(number)) if letter else _WORDS[word]
        if option not in options or option in found:
            return None
        found[option] = value
        rest = rest[match.end() :]
    return found

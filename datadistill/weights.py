"""Initial weights: where the inner loop starts.

`fixed-init` and `random-init` are here; the two pretrained kinds join as further records of `KINDS` that sample from a
pool of trained networks instead of drawing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from datadistill.inner.functional import Network, Weights
from datadistill.models.schemes import draw_weights
from datadistill.registry import Registry
from datadistill.runtime import stream


@runtime_checkable
class InitialWeights(Protocol):
    """A distribution of initial weights."""

    @property
    def fixed(self) -> Weights | None:
        """The one start there is, if there is only one: then it belongs to the result."""
        ...

    def sample(self, count: int, generator: torch.Generator) -> list[Weights]:
        """Initial weights for `count` networks."""
        ...


@dataclass(frozen=True, eq=False)
class Fixed:
    """One known start."""

    fixed: Weights

    def sample(self, count: int, generator: torch.Generator) -> list[Weights]:
        return [self.fixed] * count


@dataclass(frozen=True, eq=False)
class Random:
    """A fresh draw each time.

    Attributes:
        network: what to draw for.
        scheme: one of `models.SCHEMES`.
    """

    network: Network
    scheme: str

    @property
    def fixed(self) -> None:
        return None

    def sample(self, count: int, generator: torch.Generator) -> list[Weights]:
        return [draw_weights(self.network.module, self.scheme, generator) for _ in range(count)]


@dataclass(frozen=True)
class KindInfo:
    """A kind of initial weights.

    Attributes:
        name: what people type.
        line: one line of explanation.
        make: from a network, a scheme and a seed.
    """

    name: str
    line: str
    make: Callable[[Network, str, int], InitialWeights]


def _fixed(network: Network, scheme: str, seed: int) -> InitialWeights:
    return Fixed(draw_weights(network.module, scheme, stream(seed, "fixed-init")))


KINDS = Registry(
    "kind of initial weights",
    (
        KindInfo("fixed-init", "one random draw, known and saved with the result", _fixed),
        KindInfo(
            "random-init",
            "a fresh draw for every network",
            lambda network, scheme, seed: Random(network, scheme),
        ),
    ),
)

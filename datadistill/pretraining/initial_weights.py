"""Initial weights: where the inner loop starts.

Two kinds draw them; two take those of trained networks, from a pool, or, for one network, as a user's module came with
them (Wang et al. 2018).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from datadistill.engine.functional import Network, Weights
from datadistill.models.init import draw_weights
from datadistill.pretraining.pool import Pool
from datadistill.utils.errors import RequestError
from datadistill.utils.registry import Registry
from datadistill.utils.runtime import stream


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
    """One known start.

    Attributes:
        fixed: all weights, those too that are not trained.
        frozen: the names of these.
    """

    fixed: Weights
    frozen: tuple[str, ...] = ()

    def sample(self, count: int, generator: torch.Generator) -> list[Weights]:
        return [{name: weight for name, weight in self.fixed.items() if name not in self.frozen}] * count


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

    @cached_property
    def _on_host(self) -> nn.Module:
        """The module, where weights are drawn: a copy for all draws, if it is on another device."""
        module = self.network.module
        return module if _device(self.network).type == "cpu" else copy.deepcopy(module).cpu()

    def sample(self, count: int, generator: torch.Generator) -> list[Weights]:
        device = _device(self.network)
        drawn = [draw_weights(self._on_host, self.scheme, generator) for _ in range(count)]
        return [{name: weight.to(device) for name, weight in weights.items()} for weights in drawn]


@dataclass(frozen=True)
class KindInfo:
    """A kind of initial weights.

    Attributes:
        name: what people type.
        line: one line of explanation.
        make: from a network, a scheme, a seed and a pool of trained networks, if one was given.
        pretrained: whether it takes a pool; the others draw.
    """

    name: str
    line: str
    make: Callable[[Network, str, int, Pool | None], InitialWeights]
    pretrained: bool = False


def _fixed(network: Network, scheme: str, seed: int, pool: Pool | None) -> InitialWeights:
    drawn = draw_weights(network.module, scheme, stream(seed, "fixed-init"))
    return Fixed(drawn | network.constants, network.frozen)


def _random(network: Network, scheme: str, seed: int, pool: Pool | None) -> InitialWeights:
    return Random(network, scheme)


def _random_pretrained(network: Network, scheme: str, seed: int, pool: Pool | None) -> InitialWeights:
    if pool is None:
        raise RequestError(
            "random-pretrained needs a pool of trained networks: make one with `datadistill pretrain` and give its "
            "file with --pool"
        )
    return pool.for_distilling.to(_device(network))


def _fixed_pretrained(network: Network, scheme: str, seed: int, pool: Pool | None) -> InitialWeights:
    if pool is None:
        own = {name: weight.detach().clone() for name, weight in network.module.named_parameters()}
        return Fixed(own | network.constants, network.frozen)
    return Fixed(pool.for_distilling.to(_device(network))[_index(pool, seed)] | network.constants, network.frozen)


KINDS = Registry(
    "kind of initial weights",
    (
        KindInfo("fixed-init", "one random draw, known and saved with the result", _fixed),
        KindInfo("random-init", "a fresh draw for every network", _random),
        KindInfo("fixed-pretrained", "one trained network, known and saved with the result", _fixed_pretrained, True),
        KindInfo("random-pretrained", "networks from a pool of trained ones", _random_pretrained, True),
    ),
)


def origin(kind: KindInfo, scheme: str, seed: int, pool: Pool | None) -> dict[str, Any]:
    """Where initial weights come from, as a result's provenance records it."""
    if not kind.pretrained:
        return {"kind": kind.name, "scheme": scheme}
    if pool is None:
        return {"kind": kind.name}
    found = {"kind": kind.name, "scheme": pool.facts.scheme, "pool": pool.digest, "source": pool.facts.dataset}
    return found if kind.name == "random-pretrained" else {**found, "index": _index(pool, seed)}


def _index(pool: Pool, seed: int) -> int:
    """Which network of the pool is the one that fixed-pretrained takes."""
    return int(torch.randint(len(pool.for_distilling), (), generator=stream(seed, "fixed-pretrained")))


def _device(network: Network) -> torch.device:
    return next(network.module.parameters()).device

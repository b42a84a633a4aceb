"""Pools: trained networks of one architecture in one file, for the pretrained kinds of initial weights.

The last `reserved` networks of a pool are for judging only: what distilling draws from does not hold them, so that an
evaluation uses networks that distilling never saw.

Weights lie in the file, and in memory, in half the bits that they are computed with; accuracies are those of the
rounded weights.
"""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datadistill.data.compatibility import check_shape, check_whitened
from datadistill.data.real import RealData
from datadistill.engine.functional import Network, Weights
from datadistill.models import same_model
from datadistill.pretraining.facts import NetworkFacts, check_weights, parse_facts
from datadistill.utils.errors import DamagedFileError, RequestError, require
from datadistill.utils.files import digest_of, is_file, read_tensors, write_tensors
from datadistill.utils.schema import read_header

FORMAT = 1
_KEY = "datadistill-pool"


@dataclass(frozen=True, kw_only=True)
class PoolFacts(NetworkFacts):
    """Metadata of a pool; the file's JSON.

    Attributes:
        reserved: how many networks at the end are for judging only.
        unrounded: accuracies before the weights were rounded, which tell what that costs.
        test: accuracies on the test split, where they were measured; nothing is chosen by them.
        start: the digest of the pool from whose networks training went on; empty where it began with drawn weights.
    """

    reserved: int
    unrounded: tuple[float, ...] = ()
    test: tuple[float, ...] = ()
    start: str = ""

    MEASURED = ("unrounded", "test", "seconds", "versions", "recipe")
    RESULTS = ("accuracies", *MEASURED)
    COUNT = "nets"

    def __post_init__(self) -> None:
        check_shares(len(self.accuracies), self.reserved)

    def known(self) -> dict[str, Any]:
        """JSON-ready."""
        known = super().known()
        # Only where it says something: files from before there was a choice keep their digest.
        start = known.pop("start")
        return known | ({"start": start} if start else {})


def check_shares(nets: int, reserved: int) -> None:
    """Refuse a pool without networks to distil with, or without any to judge by."""
    if not 1 <= reserved < nets:
        raise RequestError(
            f"{reserved} of {nets} networks cannot be reserved: at least one is for judging and one for distilling"
        )


@dataclass(frozen=True, eq=False)
class Networks:
    """Some networks of a pool; a distribution of initial weights (`weights.InitialWeights`).

    Attributes:
        stacked: each weight of all of them, [n, ...], in half precision.
    """

    stacked: Weights

    @property
    def fixed(self) -> None:
        return None

    def __len__(self) -> int:
        return len(next(iter(self.stacked.values())))

    def __getitem__(self, index: int) -> Weights:
        """The weights of one network in float32."""
        return {name: stack[index].float() for name, stack in self.stacked.items()}

    def sample(self, count: int, generator: torch.Generator) -> list[Weights]:
        """Different networks; where more are wanted than there are, every one comes once before any comes again."""
        rounds = math.ceil(count / len(self))
        order = torch.cat([torch.randperm(len(self), generator=generator) for _ in range(rounds)])
        return [self[index] for index in order[:count].tolist()]

    def to(self, device: torch.device) -> "Networks":
        """The same networks on a device."""
        return Networks({name: stack.to(device) for name, stack in self.stacked.items()})


@dataclass(frozen=True, eq=False)
class Pool:
    """Trained networks of one architecture.

    Attributes:
        facts: what they are and how they were made.
        stacked: each weight of all networks, [n, ...], in half precision, on the CPU.
        path: the file it was read from.
    """

    facts: PoolFacts
    stacked: Weights
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.facts.accuracies)

    @property
    def networks(self) -> Networks:
        """All of them."""
        return Networks(self.stacked)

    @property
    def for_distilling(self) -> Networks:
        """All but the reserved ones."""
        return Networks({name: stack[: -self.facts.reserved] for name, stack in self.stacked.items()})

    @property
    def for_judging(self) -> Networks:
        """The reserved ones."""
        return Networks({name: stack[-self.facts.reserved :] for name, stack in self.stacked.items()})

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights and of the facts that are not measurements, hexadecimal."""
        return digest_of(self.stacked, self.facts.digested())

    @property
    def label(self) -> str:
        """The pool in a few words, for tables."""
        return f"{self.facts.dataset}, pool {self.digest[:8]}"

    def check_fits(self, network: Network, model: str, real: RealData) -> None:
        """Refuse to start another network, or one for other images, from these weights.

        Raises:
            RequestError: naming what differs.
        """
        mine = self.facts
        check_shape(mine.image_shape, real, "the pool's images")
        if len(mine.classes) != real.num_classes:
            raise RequestError(
                f"the pool's networks tell {len(mine.classes)} classes apart, but {real.name} has {real.num_classes}"
            )
        check_whitened(mine.zca, real, "the pool's images")
        if not same_model(mine.model, model):
            raise RequestError(f"the pool holds networks {mine.model}, but the network here is {model}")
        shapes = {name: tuple(stack.shape[1:]) for name, stack in self.stacked.items()}
        check_weights(shapes, network, model, "the pool's")

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically (layout: docs/pools.md)."""
        header = json.dumps({"format": FORMAT, **self.facts.known()}, allow_nan=False)
        write_tensors(Path(path), self.stacked, {_KEY: header, "sha256": self.digest})


def stacked_in_half(networks: Sequence[Weights]) -> Weights:
    """Each weight of several networks as [n, ...] on the CPU, in float16, or in bfloat16 where that would overflow."""
    together = {name: torch.stack([weights[name].cpu() for weights in networks]) for name in networks[0]}
    return {name: _half(stack) for name, stack in together.items()}


def _half(stack: Tensor) -> Tensor:
    half = stack.half()
    return half if bool(half.isfinite().all()) else stack.bfloat16()


def load_pool(path: str | Path) -> Pool:
    """Read a pool.

    Raises:
        RequestError: there is no such file.
        DamagedFileError: the file is damaged or breaks the format; the sentence says where.
    """
    path = Path(path)
    if not is_file(path):
        command = shlex.join(["datadistill", "pretrain", "--out", str(path)])
        raise RequestError(f"no pool of networks at {path}: make one with `{command}`")
    tensors, metadata = read_tensors(path)
    try:
        pool = Pool(parse_facts(PoolFacts, read_header(metadata, _KEY, FORMAT), ["start"]), tensors, path)
        _check(pool)
        require(metadata.get("sha256") == pool.digest, "its checksum differs")
    except DamagedFileError as error:
        raise DamagedFileError(f"{path} is not a pool of format {FORMAT}: {error}") from error
    return pool


def _check(pool: Pool) -> None:
    for shares in (pool.facts.unrounded, pool.facts.test):
        require(len(shares) in (0, len(pool)), "it has more or fewer accuracies than networks")
        require(all(0 <= share <= 1 for share in shares), "an accuracy is not between 0 and 1")
    require(len(pool.stacked) > 0, "it holds no weights")
    for name, stack in pool.stacked.items():
        require(stack.dtype in (torch.float16, torch.bfloat16), f"'{name}' is {stack.dtype}")
        require(stack.dim() > 0 and len(stack) == len(pool), f"'{name}' does not hold {len(pool)} networks")
        require(bool(stack.isfinite().all()), f"'{name}' is not finite")

"""Pools: trained networks of one architecture in one file, for the pretrained kinds of initial weights.

The last `reserved` networks of a pool are for judging only: what distilling draws from does not hold them, so that an
evaluation uses networks that distilling never saw.

Weights lie in the file, and in memory, in half the bits that they are computed with; accuracies are those of the
rounded weights.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datadistill.data.compatibility import check_whitened
from datadistill.data.real import RealData
from datadistill.data.transforms import Normalization
from datadistill.engine.functional import Network, Weights
from datadistill.models import same_model
from datadistill.training.train import Training
from datadistill.utils.errors import DamagedFileError, RequestError
from datadistill.utils.files import digest_of, read_tensors, write_tensors

FORMAT = 1
_KEY = "datadistill-pool"
MEASURED = ("unrounded", "test", "seconds", "versions", "recipe")
"""Facts that say nothing of what the networks are: the same networks made again have the same digest."""


@dataclass(frozen=True)
class PoolFacts:
    """What a pool holds and how it was made; the file's JSON.

    Attributes:
        dataset: what the networks were trained on: its training split less the held-out slice.
        classes: class names, by index.
        normalization: by channel, how the real pixels in [0, 1] became what the networks were fed.
        image_shape: channels, height and width.
        model: the architecture's name.
        scheme: how the weights before training were drawn.
        batch_norm: what layers with running statistics did, as for `engine.make_network`.
        training: how they were trained.
        seed: of all networks.
        reserved: how many networks at the end are for judging only.
        accuracies: of each network on the held-out slice, with the weights as they are in the file.
        unrounded: the same before the weights were rounded, which tells what that costs.
        test: of each network on the test split, where that was measured; nothing is chosen by it.
        seconds: of training, added up over networks.
        versions: of the software.
        recipe: the command that made it.
        zca: whether the images were whitened then.
        start: the digest of the pool from whose networks training went on; empty where it began with drawn weights.
    """

    dataset: str
    classes: tuple[str, ...]
    normalization: Normalization
    image_shape: tuple[int, ...]
    model: str
    scheme: str
    batch_norm: str
    training: Training
    seed: int
    reserved: int
    accuracies: tuple[float, ...]
    unrounded: tuple[float, ...] = ()
    test: tuple[float, ...] = ()
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    recipe: str = ""
    zca: bool = False
    start: str = ""

    def __post_init__(self) -> None:
        check_shares(len(self.accuracies), self.reserved)

    def known(self) -> dict[str, Any]:
        """JSON-ready."""
        known = asdict(self) | {"training": self.training.known(), "normalization": self.normalization.known()}
        # Only where they say something, zca beside mean and deviation: files from before there was a choice keep their
        # digest.
        if known.pop("zca"):
            known["normalization"]["zca"] = True
        if not self.start:
            del known["start"]
        return known


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
        known = {name: value for name, value in self.facts.known().items() if name not in MEASURED}
        return digest_of(self.stacked, json.dumps(known, sort_keys=True))

    @property
    def label(self) -> str:
        """The pool in a few words, for tables."""
        return f"{self.facts.dataset}, pool {self.digest[:8]}"

    def check_fits(self, network: Network, model: str, real: RealData) -> None:
        """Refuse to start another network, or one for other images, from these weights.

        Raises:
            RequestError: naming what differs.
        """
        mine, shape = self.facts, tuple(real.train.images.shape[1:])
        if mine.image_shape != shape:
            raise RequestError(f"the pool is for images of {mine.image_shape}, but those of {real.name} are {shape}")
        if len(mine.classes) != real.num_classes:
            raise RequestError(
                f"the pool's networks tell {len(mine.classes)} classes apart, but {real.name} has {real.num_classes}"
            )
        check_whitened(mine.zca, real, "the pool's images")
        if not same_model(mine.model, model):
            raise RequestError(f"the pool holds networks {mine.model}, but the network here is {model}")
        if any(getattr(layer, "track_running_stats", False) for layer in network.module.modules()):
            raise RequestError("a pool holds no running statistics: choose --batch-norm batch, also when making it")
        expected = {name: tuple(weight.shape) for name, weight in network.module.named_parameters()}
        found = {name: tuple(stack.shape[1:]) for name, stack in self.stacked.items()}
        if expected != found:
            raise RequestError(f"the pool's weights do not fit {model}: it was made for another network of that name")

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
    if not path.is_file():
        raise RequestError(f"no pool of networks at {path}: make one with `datadistill pretrain --out {path}`")
    tensors, metadata = read_tensors(path)
    try:
        pool = Pool(_parse(metadata), tensors, path)
        _check(pool)
        _require(metadata.get("sha256") == pool.digest, "its checksum differs")
    except (
        DamagedFileError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        whole = isinstance(error, DamagedFileError)
        reason = str(error) if whole else f"its metadata is malformed ({repr(error)[:200]})"
        raise DamagedFileError(f"{path} is not a pool of format {FORMAT}: {reason}") from error
    return pool


def _parse(metadata: dict[str, str]) -> PoolFacts:
    _require(_KEY in metadata, f"the metadata key '{_KEY}' is missing")
    header = json.loads(metadata[_KEY])
    _require(isinstance(header, dict), "its metadata is not a JSON object")
    _require(header.pop("format", None) == FORMAT, "it has another format")
    kinds: dict[str, type | tuple[type, ...]] = {
        **dict.fromkeys(("dataset", "model", "scheme", "batch_norm", "recipe", "start"), str),
        **dict.fromkeys(("classes", "image_shape", "accuracies", "unrounded", "test"), list),
        **dict.fromkeys(("normalization", "training", "versions"), dict),
        **dict.fromkeys(("seed", "reserved"), int),
        "seconds": (int, float),
        "zca": bool,
    }
    header["zca"] = header["normalization"].get("zca", False)
    header.setdefault("start", "")
    for entry in fields(PoolFacts):
        _require(entry.name in header, f"'{entry.name}' is missing from its metadata")
        _require(isinstance(header[entry.name], kinds[entry.name]), f"'{entry.name}' has the wrong type")
    _require(all(isinstance(name, str) for name in header["classes"]), "a class name is not text")
    _require(all(isinstance(size, int) and size > 0 for size in header["image_shape"]), "its image shape is malformed")
    shares = [float(share) for share in header["accuracies"] + header["unrounded"] + header["test"]]
    _require(all(0 <= share <= 1 for share in shares), "an accuracy is not between 0 and 1")
    mean, std = (tuple(map(float, header["normalization"][key])) for key in ("mean", "std"))
    for name in ("classes", "image_shape", "accuracies", "unrounded", "test"):
        header[name] = tuple(header[name])
    return PoolFacts(**header | {"normalization": Normalization(mean, std), "training": Training(**header["training"])})


def _check(pool: Pool) -> None:
    facts = pool.facts
    _require(len(facts.classes) > 0, "it has no classes")
    _require(len(facts.image_shape) == 3, "its image shape is malformed")
    mean, std = facts.normalization.mean, facts.normalization.std
    whole = len(mean) == len(std) == facts.image_shape[0] and all(map(math.isfinite, mean + std))
    _require(whole and min(std) > 0, "its normalisation is malformed")
    counts = {len(facts.unrounded), len(facts.test)}
    _require(counts <= {0, len(pool)}, "it has more or fewer accuracies than networks")
    _require(len(pool.stacked) > 0, "it holds no weights")
    for name, stack in pool.stacked.items():
        _require(stack.dtype in (torch.float16, torch.bfloat16), f"'{name}' is {stack.dtype}")
        _require(stack.dim() > 0 and len(stack) == len(pool), f"'{name}' does not hold {len(pool)} networks")
        _require(bool(stack.isfinite().all()), f"'{name}' is not finite")


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise DamagedFileError(otherwise)

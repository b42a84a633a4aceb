"""Recipes as records, and the check that they can be run."""

import hashlib
import json
import math
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import combinations
from typing import Any

from datadistill.baselines import BASELINES
from datadistill.distillation.budget import parse_duration
from datadistill.distillation.config import IN_RUN, RunConfig
from datadistill.methods import record_of
from datadistill.models import SCHEMES, has_own_weights
from datadistill.pretraining.initial_weights import KINDS
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.errors import RequestError, unknown_name

_IN_RUN = set(IN_RUN) - {"pool", "seed", "device", "budget", "trajectories"}
_FULL = "-full"
_GROUPS = ("run", "method", "outer")
"""What a recipe and its points say of a run."""

_IN_FULL = (*_GROUPS, "experts", "expect")
_WORDS = ("name", "line", "paper", "expect", "full", "at_most")
"""What a measured value does not depend on."""

_PAPER = ("source", "before", "before_std", "after", "after_std")


@dataclass(frozen=True)
class Expect:
    """Expected ranges of a recipe's results; shares are fractions.

    Attributes:
        nets: networks to judge by; None as `evaluate` takes them. Fixed initial weights have one.
        sets: how many distilled sets, each from another seed, `nets` networks for each; judged as one.
        accuracy: lowest and highest mean accuracy.
        std_at_most: of the accuracies of single networks.
        attacked_falls_at_least: accuracy on the attacked class that malicious data costs good networks.
        others_fall_at_most: and on any other class.
        gain_at_least: accuracy at a sweep's last point less that at its first.
    """

    nets: int | None = None
    sets: int = 1
    accuracy: tuple[float, float] | None = None
    std_at_most: float | None = None
    attacked_falls_at_least: float | None = None
    others_fall_at_most: float | None = None
    gain_at_least: float | None = None

    def __post_init__(self) -> None:
        if self.nets is not None and self.nets < 1:
            raise RequestError(f"nets is {self.nets}, but must be at least 1")
        if self.sets < 1:
            raise RequestError(f"sets is {self.sets}, but must be at least 1")
        if self.accuracy is not None and not 0 <= self.accuracy[0] <= self.accuracy[1] <= 1:
            raise RequestError(f"the expected accuracy is {self.accuracy}, but must be a range within 0 and 1")

    def __str__(self) -> str:
        parts = []
        if self.accuracy is not None:
            parts.append(range_text(*self.accuracy))
        if self.std_at_most is not None:
            parts.append(f"deviation at most {_points(self.std_at_most)}")
        if self.attacked_falls_at_least is not None:
            parts.append(f"attacked class falls by at least {_points(self.attacked_falls_at_least)}")
        if self.others_fall_at_most is not None:
            parts.append(f"others by at most {_points(self.others_fall_at_most)}")
        if self.gain_at_least is not None:
            gain = "not below" if self.gain_at_least == 0 else f"at least {_points(self.gain_at_least)} above"
            parts.append(f"last point {gain} the first")
        return ", ".join(parts)


def range_text(low: float, high: float) -> str:
    """A range of shares for people: `95.0 to 98.0 %`, `at least 95.0 %`, `at most 10.0 %`."""
    if high >= 1:
        return f"at least {100 * low:.1f} %"
    return f"at most {100 * high:.1f} %" if low <= 0 else f"{100 * low:.1f} to {100 * high:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


@dataclass(frozen=True)
class PoolRecipe:
    """The pool of trained networks that a recipe starts from: what `pretrain` is asked.

    Attributes:
        dataset: that the networks are trained on.
        model: the network.
        nets: how many.
        reserved: how many of them are for judging only.
        training: epochs, rate and batch.
        scheme: how weights before training are drawn.
        batch_norm: what layers with running statistics do.
        seed: of all networks.
    """

    dataset: str
    model: str
    nets: int
    reserved: int
    training: TrainRecipe
    scheme: str = "xavier"
    batch_norm: str = "refused"
    seed: int = 0

    @property
    def file_name(self) -> str:
        """Dataset, network and how many of them: recipes that ask for the same pool share it."""
        return f"{self.dataset}-{self.model.lower()}-{self.nets}.safetensors"

    @property
    def command(self) -> str:
        """The command that makes it."""
        names = ("dataset", "model", "scheme", "nets", "reserved")
        words = [word for name in names for word in (f"--{name}", getattr(self, name))]
        words += self.training.as_words()
        words += ["--batch-norm", self.batch_norm, "--seed", self.seed]
        return shlex.join(["datadistill", "pretrain", *map(str, words)])


@dataclass(frozen=True)
class ExpertsRecipe:
    """The trajectories that a recipe of method `mtt` matches: what `pretrain --trajectories` is asked.

    The experts are networks of the recipe's own kind, or of the one that it matches on, trained on its own dataset.

    Attributes:
        count: how many experts.
        training: epochs, rate, batch and augmentation.
        seed: of all experts.
    """

    count: int
    training: TrainRecipe
    seed: int = 0

    def folder_name(self, dataset: str, model: str) -> str:
        """Recipes that ask for the same experts share them."""
        return f"{dataset}-{model.lower()}-{self.count}x{self.training.epochs}"


@dataclass(frozen=True)
class Point:
    """One point of a sweep.

    Attributes:
        label: of the point, in tables and at the curve.
        run: changes to the recipe's [run].
        method: changes to its [method].
        outer: changes to its [outer].
        scheme: fresh networks are drawn so instead of as the data was made for.
    """

    label: str
    run: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    outer: dict[str, Any] = field(default_factory=dict)
    scheme: str | None = None

    @property
    def slug(self) -> str:
        """The label as part of a file's name."""
        return re.sub(r"[^\w.]+", "-", self.label).strip("-.")


@dataclass(frozen=True)
class Sweep:
    """Several points in one recipe.

    Attributes:
        axis: what differs between them, for people.
        points: in order.
    """

    axis: str
    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        if len(self.points) < 2:
            raise RequestError(f"a sweep has {len(self.points)} points, but needs at least 2")
        for one, other in combinations(self.points, 2):
            if not one.slug or one.slug.lower() == other.slug.lower():
                raise RequestError(f"points '{one.label}' and '{other.label}' of a sweep cannot be told apart")


@dataclass(frozen=True)
class Recipe:
    """An experiment as data.

    Attributes:
        name: what people type; the file's name.
        line: one line of explanation.
        run: dataset, model, weights, scheme, iterations, ipc, attack and the like.
        method: name and hyper-parameters.
        outer: hyper-parameters of the outer loop.
        paper: the source of published figures; `before`, `after` and their `_std` as fractions; empty without one.
        engine: how hypergradients are computed.
        pool: trained networks that it starts from.
        experts: whose trajectories it matches.
        expect: what it should give.
        baselines: what is judged beside it with the same steps and networks.
        sweep: several points instead of one.
        full: changes to `run`, `method`, `outer`, `experts` and `expect` that make this, which is smaller, the
            published experiment.
        at_most: for how long `distill` follows it, such as `4m`, where nothing else is asked for: a machine that is too
            slow for all outer steps makes fewer. Empty: as long as they take.
    """

    name: str
    line: str
    run: dict[str, Any]
    method: dict[str, Any]
    outer: dict[str, Any]
    paper: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    pool: PoolRecipe | None = None
    experts: ExpertsRecipe | None = None
    expect: Expect = Expect()
    baselines: tuple[str, ...] = ()
    sweep: Sweep | None = None
    full: dict[str, dict[str, Any]] = field(default_factory=dict)
    at_most: str = ""

    def __post_init__(self) -> None:
        try:
            check_keys("paper", self.paper, _PAPER)
            if self.full:
                check_keys("full", self.full, _IN_FULL)
                self.in_full()
            parse_duration(self.at_most or None)
            for point in self.points:
                self._check(point)
                if point.scheme is not None:
                    SCHEMES.get(point.scheme)
            for name in self.baselines:
                BASELINES.get(name)
            self._check_together()
        except (RequestError, TypeError, KeyError) as error:
            raise RequestError(f"recipe {self.name} is wrong: {error}") from error

    @property
    def command(self) -> str:
        """The command that runs it."""
        name = self.name.removesuffix(_FULL)
        return f"datadistill reproduce {name}{' --full' if name != self.name else ''}"

    def in_full(self) -> "Recipe":
        """The published experiment, where this one is smaller.

        Raises:
            RequestError: this is all there is.
        """
        if not self.full:
            raise RequestError(f"recipe {self.name} is in full already: leave out --full")
        own: dict[str, Any] = {name: {**getattr(self, name), **self.full.get(name, {})} for name in _GROUPS}
        expect = replace(self.expect, **parse_expect(self.full.get("expect", {})))
        experts = self.experts
        if experts is not None:
            wanted = dict(self.full.get("experts", {}))
            count = wanted.pop("count", experts.count)
            experts = replace(experts, count=count, training=experts.training.told(**wanted))
        return replace(self, name=self.name + _FULL, full={}, expect=expect, experts=experts, **own)

    @property
    def points(self) -> tuple[Point, ...]:
        """Those of the sweep, or the one point that a recipe without one is."""
        return (Point(""),) if self.sweep is None else self.sweep.points

    def config(self, point: Point | None = None) -> RunConfig:
        """What is asked for at a point, where it is not the only one."""
        config = RunConfig().changed({name: getattr(self, name) for name in _GROUPS} | {"engine": self.engine})
        return config if point is None else config.changed({name: getattr(point, name) for name in _GROUPS})

    @property
    def digest(self) -> str:
        """SHA-256 of all that a measured value depends on: not of words, published figures and expected ranges."""
        known = {name: value for name, value in asdict(self).items() if name not in _WORDS}
        if self.pool is not None:
            known["pool"]["training"] = self.pool.training.known()
        if self.experts is None:
            del known["experts"]
        else:
            known["experts"]["training"] = self.experts.training.known()
        sets = {"sets": self.expect.sets} if self.expect.sets > 1 else {}
        text = json.dumps(known | {"nets": self.expect.nets} | sets, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def published(self, which: str) -> str:
        """The paper's figure `before` or `after`, for people; empty where none is known."""
        if which not in self.paper:
            return ""
        spread = f" ± {100 * self.paper[which + '_std']:.1f}" if which + "_std" in self.paper else ""
        return f"{100 * self.paper[which]:.1f}{spread} %"

    def _check(self, point: Point) -> None:
        check_keys("run", {**self.run, **point.run}, _IN_RUN)
        config = self.config(point)
        SCHEMES.get(config.scheme)
        if record_of(config.method).needs.experts != (self.experts is not None):
            raise RequestError(f"[method] is {config.method.name}, which does not go with its [experts]")
        if config.iterations is None:
            raise RequestError("[run] has no iterations")
        if config.data.zca and self.pool is not None:
            raise RequestError("[run] has zca, which does not go with a [pool], whose networks know other images")
        own = config.weights == "fixed-pretrained" and has_own_weights(config.model)
        if KINDS.get(config.weights).pretrained != (self.pool is not None or own):
            raise RequestError(f"[run] has weights {config.weights}, which does not go with its [pool]")

    def _check_together(self) -> None:
        expect, attack = self.expect, self.run.get("attack")
        falls = (expect.attacked_falls_at_least, expect.others_fall_at_most)
        if falls != (None, None) and (attack is None or self.pool is None or self.sweep is not None):
            raise RequestError("[expect] has falls of classes, which take an attack and a [pool], and no sweep")
        if (expect.gain_at_least is not None) and self.sweep is None:
            raise RequestError("[expect] has gain_at_least, which takes a [sweep]")
        if self.sweep is not None and (self.baselines or (expect.accuracy, expect.std_at_most) != (None, None)):
            raise RequestError("a sweep has neither baselines nor an expected accuracy")
        if expect.sets > 1 and (attack is not None or self.sweep is not None):
            raise RequestError("[expect] has sets, which go with neither an attack nor a [sweep]")
        if str(expect) == "":
            raise RequestError("[expect] names no range")
        reserved = math.inf if self.pool is None else self.pool.reserved
        if self.run["weights"] == "random-pretrained" and (expect.nets or 0) > reserved:
            raise RequestError(f"[expect] has nets {expect.nets}, but the pool has {reserved} for judging")


def parse_expect(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Expect` from what a file holds."""
    check_keys("expect", data, [entry.name for entry in fields(Expect)])
    pair = data.get("accuracy")
    return {**data} if pair is None else {**data, "accuracy": (float(pair[0]), float(pair[1]))}


def check_keys(where: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse keys that a part of a recipe does not have."""
    for key in given:
        if key not in known:
            raise unknown_name(f"key of [{where}]", key, sorted(known))

"""The interface of methods: hyper-parameters, initial distilled data, and the gradient of an outer step."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from datadistill.data.augment import one_of, parse_augmentation
from datadistill.data.ipc import Ipc, labels_in_order
from datadistill.data.real import RealData, Split
from datadistill.distilled import DistilledData, Provenance
from datadistill.engine.config import Engine
from datadistill.engine.features import headless
from datadistill.engine.functional import Network, Noise
from datadistill.engine.networks import network_for
from datadistill.engine.planner import Workload, settle
from datadistill.models import model_name
from datadistill.pretraining.initial_weights import KINDS, InitialWeights, origin
from datadistill.pretraining.pool import Pool
from datadistill.pretraining.trajectories import Trajectories
from datadistill.utils import ranks
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream

State: TypeAlias = dict[str, Any]
"""Tensors by name, in dictionaries and lists to any depth."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Distillation problem: dataset, network and initial weights.

    Attributes:
        real: the dataset.
        network: the architecture.
        model: the architecture's name.
        starts: the initial weights.
        kind: the kind of initial weights, by name.
        scheme: how initial weights are drawn, by name.
        ipc: images per class, or one number for each; not whole where images are shared by classes.
        seed: of the run.
        attack: malicious data: real images of the first class count as the second (class indices).
        batch_norm: what layers with running statistics do, as for `make_network`.
        engine: how hypergradients are computed.
        pool: of trained networks, where initial weights are taken from one.
        trajectories: of experts, where the method matches them.
    """

    real: RealData
    network: Network
    model: str
    starts: InitialWeights
    kind: str
    scheme: str
    ipc: Ipc
    seed: int
    attack: tuple[int, int] | None = None
    batch_norm: str = "refused"
    engine: Engine = field(default_factory=Engine)
    pool: Pool | None = None
    trajectories: Trajectories | None = None
    cache: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)
    """What is costly to make and used again, by keys of those who make it."""
    _augmented: dict[str, Network] = field(default_factory=dict, init=False, repr=False)

    def with_kernels(self, kernels: str) -> "Problem":
        """Problem on a network with other C++ operations (`Engine.kernels`), such as those just built."""
        network = self.network.with_operations(kernels)
        return replace(self, network=network, engine=replace(self.engine, kernels=kernels))

    def with_augmentation(self, augment: str) -> Network:
        """The network with augmented images wherever a seed is given: by one part for a batch (`augment.one_of`)."""
        parts = parse_augmentation(augment)
        if not parts:
            return self.network
        if augment not in self._augmented:

            def changed(images: Tensor, noise: Noise) -> Tensor:
                return one_of(images, parts, stream(noise.seed, "augment"), noise.first, noise.total)

            self._augmented[augment] = replace(self.network, augment=changed)
        return self._augmented[augment]

    def with_model(self, model: str) -> "Problem":
        """Problem for a proxy model, with initial weights drawn alike; `same` is this one.

        Raises:
            RequestError: there is no such network, or the weights are not drawn.
        """
        if model.strip().lower() == "same":
            return self
        key = ("model", model)
        if key not in self.cache:
            if self.kind != "random-init":
                raise RequestError(f"weights are {self.kind}, those of {self.model}: another network has none of them")
            images = self.real.train.images  # `check` has them in float64
            network = network_for(model, self.real, images, self.batch_norm, self.engine.kernels)
            starts = KINDS.get(self.kind).make(network, self.scheme, self.seed, None)
            self.cache[key] = replace(self, network=network, model=model_name(model), starts=starts)
        other: Problem = self.cache[key]
        return other

    @cached_property
    def features(self) -> Network:
        """The network without its last linear layer; called with the weights of the whole."""
        return headless(self.network, self.real.train.images[:1])

    @property
    def count(self) -> int:
        """Distilled images."""
        return sum(self.ipc) if isinstance(self.ipc, tuple) else round(self.ipc * self.real.num_classes)

    @property
    def labels(self) -> Int64[Tensor, "n"]:
        """The classes of the distilled images, on the CPU."""
        if isinstance(self.ipc, tuple):
            return labels_in_order(self.ipc)
        return torch.arange(self.count) % self.real.num_classes

    def with_targets(self, split: Split) -> Split:
        """A split with the labels that networks are to learn: the true ones, except under an attack.

        Wang et al. 2018, section 3.5: the loss of the attacker takes one class for another.
        """
        if self.attack is None:
            return split
        attacked, target = self.attack
        return replace(split, labels=torch.where(split.labels == attacked, target, split.labels))

    @property
    def device(self) -> torch.device:
        """Device of the data and the networks."""
        return self.real.train.images.device

    def provenance(self, method: str, options: Mapping[str, Any], inner: Mapping[str, Any]) -> Provenance:
        """The part of a result's provenance that is known before it is made."""
        return Provenance(
            dataset=self.real.origin,
            classes=self.real.classes,
            normalization=self.real.normalization,
            model=self.model,
            weights=origin(KINDS.get(self.kind), self.scheme, self.seed, self.pool),
            inner=dict(inner) | ({} if self.batch_norm == "refused" else {"batch_norm": self.batch_norm}),
            method={"name": method, **options} | self._attack() | self._experts(),
            seed=self.seed,
        )

    def _experts(self) -> dict[str, Any]:
        if self.trajectories is None:
            return {}
        return {"trajectories": {"digest": self.trajectories.digest, "source": self.trajectories.facts.dataset}}

    def _attack(self) -> dict[str, Any]:
        if self.attack is None:
            return {}
        attacked, target = (self.real.classes[label] for label in self.attack)
        return {"attack": {"class": attacked, "taken_for": target}}


class Context(NamedTuple):
    """Context of an outer step: all it is given besides the distilled data and its state.

    Attributes:
        problem: what is distilled.
        engine: with every choice made.
        progress: of the run, from 0 to 1, for schedules.
    """

    problem: Problem
    engine: Engine
    progress: float = 0.0


class Step(NamedTuple):
    """A method's answer to one outer step.

    Attributes:
        loss: the outer loss.
        gradients: its derivatives by the names of the variables: `images`, `learning_rates` and `soft_labels`, each of
            the shape that it has in `DistilledData`. A name that is left out is not learned; one that the
            method's record does not have is refused.
        state: what the next step is given.
        logs: further numbers for `metrics.jsonl`.
    """

    loss: Float[Tensor, ""]
    gradients: dict[str, Tensor]
    state: State
    logs: Mapping[str, float] = MappingProxyType({})


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of hyper-parameters with pure functions.

    No function keeps anything: all randomness comes from the generator, all memory is in the state. That is what
    makes runs repeatable and resumable to the bit.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """Name in the registry."""
        ...

    def resolve(self, problem: Problem) -> "Method":
        """Method with every hyper-parameter set that goes by the problem, such as by the images per class.

        Raises:
            RequestError: the hyper-parameters do not fit the problem.
        """
        ...

    def init(self, problem: Problem, generator: torch.Generator) -> tuple[DistilledData, State]:
        """Distilled data and the method's state before the first outer step.

        Raises:
            RequestError: the hyper-parameters do not fit the problem.
        """
        ...

    def workload(self, problem: Problem) -> Workload:
        """Workload of an outer step, by which the engine is planned."""
        ...

    def step(self, distilled: DistilledData, state: State, context: Context, generator: torch.Generator) -> Step:
        """The outer loss on one random real batch and its gradient.

        Args:
            distilled: the present images, rates and labels.
            state: of the last step, or what `init` gave.
            context: the problem, the engine and the progress of the run.
            generator: a CPU generator of this step's own.
        """
        ...


@runtime_checkable
class Synthesis(Protocol):
    """A method without an outer loss, which selects its images or makes them piece by piece.

    As with `Method`: a frozen dataclass of hyper-parameters, and all randomness comes from the generator. Pieces do not
    depend on each other, so that a run can be resumed after any of them.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """Name in the registry."""
        ...

    def resolve(self, problem: Problem) -> "Synthesis":
        """Method with every hyper-parameter set that goes by the problem.

        Raises:
            RequestError: the hyper-parameters do not fit the problem.
        """
        ...

    def pieces(self, problem: Problem) -> int:
        """Number of pieces, such as one for each class."""
        ...

    def piece(self, number: int, problem: Problem, generator: torch.Generator) -> DistilledData:
        """One piece of the distilled data.

        Args:
            number: of the piece, from 0.
            problem: what is distilled; what all pieces need may be kept in its cache.
            generator: a CPU generator of this piece's own.
        """
        ...


def plan(method: Method, problem: Problem) -> Engine:
    """The engine for a method's outer steps, with every open choice made by prediction, once for each workload.

    Raises:
        RequestError: the network cannot be differentiated as the method or the engine asks.
    """
    workload = method.workload(problem)
    if workload not in problem.cache:
        network = problem.with_model(workload.model).network
        mine = workload.of_rank(ranks.count())
        problem.cache[workload] = settle(network, problem.real.train.images[:1], mine, problem.engine)
    engine: Engine = problem.cache[workload]
    return engine


def options_of(method: "Method | Synthesis") -> dict[str, Any]:
    """A method's hyper-parameters as JSON-ready values."""
    return asdict(method)

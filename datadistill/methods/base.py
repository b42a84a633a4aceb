"""What a method is: hyper-parameters, a start, and a gradient."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from datadistill.data.augment import one_of, parse_augmentation
from datadistill.data.ipc import Ipc, labels_in_order, resolve_ipc
from datadistill.data.real import RealData, Split
from datadistill.distilled import DistilledData, Provenance
from datadistill.engine.compiled import forget
from datadistill.engine.config import Engine
from datadistill.engine.features import headless
from datadistill.engine.functional import Network, Noise, make_network
from datadistill.engine.planner import Demand, cheaper, settle
from datadistill.models import SCHEMES, ModelFactory, create_model, has_own_weights, model_name
from datadistill.pretraining.initial_weights import KINDS, InitialWeights, origin
from datadistill.pretraining.pool import Pool
from datadistill.pretraining.trajectories import Trajectories
from datadistill.utils.errors import RequestError, unknown_name
from datadistill.utils.runtime import is_out_of_memory, stream

MethodState: TypeAlias = dict[str, Tensor]
Answer = TypeVar("Answer")

_CHEAPER = "engine.cheaper"


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be distilled, and for which network.

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
    kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)
    """What is costly to make and used again."""
    _augmented: dict[str, Network] = field(default_factory=dict, init=False, repr=False)

    def settle(self, demand: Demand) -> Engine:
        """The engine with every open choice made for this demand, by a prediction that is made once."""
        if demand not in self.kept:
            self.kept[demand] = settle(self.network, self.real.train.images[:1], demand, self.engine)
        engine: Engine = self.kept[demand]
        return engine

    def with_kernels(self, kernels: str) -> "Problem":
        """The same on a network with other operations of ours (`Engine.kernels`), such as those just built."""
        network = make_network(self.network.module, self.batch_norm, kernels)
        return replace(self, network=network, engine=replace(self.engine, kernels=kernels))

    def seen_through(self, augment: str) -> Network:
        """The network with images changed wherever a seed is given: by one part for a batch (`augment.one_of`)."""
        parts = parse_augmentation(augment)
        if not parts:
            return self.network
        if augment not in self._augmented:

            def changed(images: Tensor, noise: Noise) -> Tensor:
                return one_of(images, parts, stream(noise.seed, "augment"), noise.first, noise.total)

            self._augmented[augment] = replace(self.network, augment=changed)
        return self._augmented[augment]

    def on(self, model: str) -> "Problem":
        """The same for another network, with initial weights drawn alike; `same` is this one.

        Raises:
            RequestError: there is no such network, or the weights are not drawn.
        """
        if model.strip().lower() == "same":
            return self
        key = ("on", model)
        if key not in self.kept:
            if self.kind != "random-init":
                raise RequestError(f"weights are {self.kind}, those of {self.model}: another network has none of them")
            module = create_model(model, self.real).to(self.real.train.images)  # `check` has them in float64
            network = make_network(module, self.batch_norm, self.engine.kernels)
            starts = KINDS.get(self.kind).make(network, self.scheme, self.seed, None)
            self.kept[key] = replace(self, network=network, model=model_name(model), starts=starts)
        other: Problem = self.kept[key]
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

    def wanted(self, split: Split) -> Split:
        """A split with the answers that networks are to learn: the true ones, except under an attack.

        Wang et al. 2018, section 3.5: the loss of the attacker takes one class for another.
        """
        if self.attack is None:
            return split
        attacked, target = self.attack
        return replace(split, labels=torch.where(split.labels == attacked, target, split.labels))

    @property
    def device(self) -> torch.device:
        """Where the data and the networks are."""
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


def make_problem(
    real: RealData,
    *,
    model: str | ModelFactory,
    weights: str,
    scheme: str,
    ipc: int | float | str | Sequence[int],
    seed: int,
    device: torch.device,
    engine: Engine | None = None,
    batch_norm: str = "refused",
    attack: tuple[str, str] | None = None,
    pool: Pool | None = None,
    trajectories: Trajectories | None = None,
) -> Problem:
    """A problem from names, with the data and the network on the device.

    Raises:
        RequestError: a name is unknown, or the network, the pool or the trajectories cannot be used.
    """
    engine = engine or Engine()
    network = make_network(create_model(model, real).to(device), batch_norm, engine.kernels)
    kind = KINDS.get(weights)
    scheme = SCHEMES.get(scheme).name
    if pool is not None:
        if not kind.pretrained:
            raise RequestError(f"{kind.name} draws its weights: a pool is for random-pretrained and fixed-pretrained")
        pool.check_fits(network, model_name(model), real)
        scheme = pool.facts.scheme
    elif trajectories is not None:
        scheme = trajectories.facts.scheme
    elif kind.name == "fixed-pretrained" and not has_own_weights(model):
        raise RequestError(
            f"fixed-pretrained needs trained weights, and {model} has none of its own: give a pool with --pool, or a "
            "model function of your own that returns a trained network"
        )
    return Problem(
        real=real.to(device),
        network=network,
        model=model_name(model),
        starts=kind.make(network, scheme, seed, pool),
        kind=kind.name,
        scheme=scheme,
        ipc=resolve_ipc(ipc, real),
        seed=seed,
        attack=None if attack is None else _parse_attack(real, attack),
        batch_norm=batch_norm,
        engine=engine,
        pool=pool,
        trajectories=trajectories,
    )


def _parse_attack(real: RealData, attack: tuple[str, str]) -> tuple[int, int]:
    for name in attack:
        if name not in real.classes:
            raise unknown_name(f"class of {real.name}", name, real.classes)
    if attack[0] == attack[1]:
        raise RequestError(f"the attack is to take class {attack[0]} for itself: name two different classes")
    return real.classes.index(attack[0]), real.classes.index(attack[1])


class Gradients(NamedTuple):
    """Derivatives of the outer loss with respect to the distilled data.

    Attributes:
        images: as `DistilledData.images`.
        learning_rates: as `DistilledData.learning_rates`; None where the method learns none.
        soft_labels: as `DistilledData.soft_labels`; None where the method learns none.
    """

    images: Float[Tensor, "n c h w"]
    learning_rates: Float[Tensor, "t"] | None
    soft_labels: Float[Tensor, "n k"] | None = None


class Outcome(NamedTuple):
    """What a method answers to one outer step.

    Attributes:
        loss: the outer loss.
        gradients: its derivatives.
        state: what the method wants to be given at the next step.
        remarks: sentences for whoever watches the run.
    """

    loss: Float[Tensor, ""]
    gradients: Gradients
    state: MethodState
    remarks: tuple[str, ...] = ()


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of hyper-parameters with pure functions.

    No function keeps anything: all randomness comes from the generator, all memory is in the state. That is what
    makes runs repeatable and resumable to the bit.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """Under which it is registered."""
        ...

    def start(self, problem: Problem, generator: torch.Generator) -> DistilledData:
        """Distilled data before the first outer step.

        Raises:
            RequestError: the hyper-parameters do not fit the problem.
        """
        ...

    def demand(self, problem: Problem) -> Demand:
        """What an outer step asks of the engine."""
        ...

    def gradient(
        self,
        distilled: DistilledData,
        problem: Problem,
        state: MethodState,
        generator: torch.Generator,
        progress: float,
    ) -> Outcome:
        """The outer loss on one random real batch and its gradient.

        Args:
            distilled: the present images and rates.
            problem: what is distilled.
            state: what the last call answered; empty at first.
            generator: a CPU generator of this step's own.
            progress: how far the run is, from 0 to 1, for schedules.
        """
        ...


def within_memory(
    problem: Problem, demand: Demand, state: MethodState, work: Callable[[Engine], Answer]
) -> tuple[Answer, MethodState, tuple[str, ...]]:
    """Do some work with the engine that fits the demand, and with cheaper ones if memory runs out all the same.

    What was learned stays in the state, so that the next step begins where this one ended.

    Args:
        problem: what is distilled.
        demand: what the work asks of the engine.
        state: the method's.
        work: called with an engine; once more with each cheaper one.

    Returns:
        What the work answers, the new state, and a sentence for each engine that was given up.
    """
    engine, level, remarks = problem.settle(demand), int(state.get(_CHEAPER, torch.tensor(0))), list[str]()
    for _ in range(level):
        engine = cheaper(engine, demand) or engine
    while True:
        try:
            return work(engine), ({**state, _CHEAPER: torch.tensor(level)} if level else state), tuple(remarks)
        except (MemoryError, RuntimeError) as error:
            following = cheaper(engine, demand)
            if not is_out_of_memory(error) or following is None:
                raise
        forget(problem.network)
        if problem.device.type == "cuda":
            torch.cuda.empty_cache()
        changes = [f"{n} {v}" for n, v in asdict(following).items() if v != getattr(engine, n)]
        remarks.append(f"memory ran out with storage {engine.storage}; going on with {', '.join(changes)}.")
        engine, level = following, level + 1


def options_of(method: Method) -> dict[str, Any]:
    """A method's hyper-parameters as JSON-ready values."""
    return asdict(method)

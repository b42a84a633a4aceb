"""What a method is: hyper-parameters, a start, and a gradient."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.data.real import RealData
from datadistill.distilled import DistilledData, Provenance
from datadistill.inner.functional import Network
from datadistill.models import SCHEMES, ModelFactory, create_model, model_name
from datadistill.weights import KINDS, InitialWeights

MethodState: TypeAlias = dict[str, Tensor]


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
        ipc: images per class.
        seed: of the run.
    """

    real: RealData
    network: Network
    model: str
    starts: InitialWeights
    kind: str
    scheme: str
    ipc: int
    seed: int

    @property
    def device(self) -> torch.device:
        """Where the data and the networks are."""
        return self.real.train.images.device

    def provenance(self, method: str, options: Mapping[str, Any], inner: Mapping[str, Any]) -> Provenance:
        """The part of a result's provenance that is known before it is made."""
        return Provenance(
            dataset=self.real.name,
            classes=self.real.classes,
            normalization=self.real.normalization,
            model=self.model,
            weights={"kind": self.kind, "scheme": self.scheme},
            inner=dict(inner),
            method={"name": method, **options},
            seed=self.seed,
        )


def make_problem(
    real: RealData,
    *,
    model: str | ModelFactory,
    weights: str,
    scheme: str,
    ipc: int,
    seed: int,
    device: torch.device,
) -> Problem:
    """A problem from names, with the data and the network on the device."""
    network = Network(create_model(model, real).to(device))
    kind = KINDS.get(weights)
    return Problem(
        real=real.to(device),
        network=network,
        model=model_name(model),
        starts=kind.make(network, SCHEMES.get(scheme).name, seed),
        kind=kind.name,
        scheme=SCHEMES.get(scheme).name,
        ipc=ipc,
        seed=seed,
    )


class Gradients(NamedTuple):
    """Derivatives of the outer loss with respect to the distilled data.

    Attributes:
        images: as `DistilledData.images`.
        learning_rates: as `DistilledData.learning_rates`; None where the method learns none.
    """

    images: Float[Tensor, "n c h w"]
    learning_rates: Float[Tensor, "t"] | None


class Outcome(NamedTuple):
    """What a method answers to one outer step.

    Attributes:
        loss: the outer loss.
        gradients: its derivatives.
        state: what the method wants to be given at the next step.
    """

    loss: Float[Tensor, ""]
    gradients: Gradients
    state: MethodState


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of hyper-parameters with two pure functions.

    Neither function keeps anything: all randomness comes from the generator, all memory is in the state. That is what
    makes runs repeatable and resumable to the bit.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def start(self, problem: Problem, generator: torch.Generator) -> DistilledData:
        """Distilled data before the first outer step.

        Raises:
            RequestError: the hyper-parameters do not fit the problem.
        """
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


def options_of(method: Method) -> dict[str, Any]:
    """A method's hyper-parameters as JSON-ready values."""
    return asdict(method)

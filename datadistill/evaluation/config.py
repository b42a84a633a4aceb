"""A trial: what is judged, on what, and how; what every protocol is given."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from datadistill.data.real import RealData, Split
from datadistill.distilled import DistilledData
from datadistill.engine.functional import Network, make_network
from datadistill.models import ModelFactory, chosen_model, create_model, model_name, same_model
from datadistill.pretraining.pool import Pool

NETS = 20


@dataclass(frozen=True, eq=False)
class Trial:
    """The arguments of `evaluate`.

    Attributes:
        distilled: what is judged.
        real: the dataset it is judged on.
        model: another network than the one it was made for.
        weights: `own` or `random-init`.
        nets: how many networks, if somebody says.
        split: `test` or `held_out`.
        seed: of the fresh draws.
        pool: of trained networks.
        scheme: how fresh networks are drawn, if somebody says.
        batch_norm: what layers with running statistics do, if somebody says.
        count: called whenever a piece of the work is done, as many times as `work_of` says.
        changes: to the settings of protocol `dc`.
    """

    distilled: DistilledData
    real: RealData
    model: str | ModelFactory | None = None
    weights: str = "own"
    nets: int | None = None
    split: str = "test"
    seed: int = 0
    pool: Pool | None = None
    scheme: str | None = None
    batch_norm: str | None = None
    count: Callable[[], None] = lambda: None
    changes: dict[str, int | float | str | None] = field(default_factory=dict)

    @property
    def judged_on(self) -> Split:
        """The real images that networks are tested on."""
        return self.real.test if self.split == "test" else self.real.held_out

    @property
    def device(self) -> torch.device:
        """Where all of it is."""
        return self.real.test.images.device

    @property
    def model_name(self) -> str:
        """The network, by name."""
        return model_name(chosen_model(self.model, self.distilled.provenance.model))

    @property
    def is_other_model(self) -> bool:
        """Whether the network is another one than the data was made for."""
        return not same_model(self.model_name, self.distilled.provenance.model)

    def make_network(self) -> Network:
        """The network that is trained."""
        own = self.distilled.provenance
        policy = self.batch_norm or str(own.inner.get("batch_norm", "refused"))
        return make_network(create_model(chosen_model(self.model, own.model), self.real).to(self.device), policy)

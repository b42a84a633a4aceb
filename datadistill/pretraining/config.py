"""Configuration of pools and of expert trajectories."""

from dataclasses import dataclass, field
from pathlib import Path

from datadistill.models import ModelFactory
from datadistill.pretraining.pool import Pool, check_shares
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.errors import RequestError

NETS, RESERVED, POOL_GB = 50, 10, 2.0
EXPERTS, TRAJECTORIES_GB = 100, 5.0
EXPERT_TRAINING = TrainRecipe(50, 0.01, 256, "sgd", schedule="constant", augment="color_crop_cutout_flip_scale_rotate")
"""How Cazenavette et al. 2022 train experts for CIFAR-10, as their code does by default."""


@dataclass(frozen=True)
class _Config:
    """What both have.

    Attributes:
        model: the network, by name or as a function that returns a `torch.nn.Module`.
        scheme: how weights before training are drawn, one of `models.SCHEMES`.
        training: epochs, rate, batch and augmentation.
        batch_norm: what layers with running statistics do: `batch`, or `refused`; `auto` as for `network_for`.
        seed: of all randomness; the same seed gives the same bits.
        device: `auto`, `cpu`, `cuda` or `mps`.
        max_gb: more gigabytes on the disk, while networks are trained, are refused.
    """

    model: str | ModelFactory = "lenet"
    scheme: str = "xavier"
    training: TrainRecipe = field(default_factory=TrainRecipe)
    batch_norm: str = "auto"
    seed: int = 0
    device: str = "auto"
    max_gb: float = POOL_GB


@dataclass(frozen=True)
class PoolConfig(_Config):
    """Configuration of a pool of networks.

    Attributes:
        nets: how many networks; 50 without it.
        reserved: how many of them are for judging only; 10 without it.
        start: another pool, or its file, such as of networks that know other images: each of them is trained further.
            The scheme, the number of networks and how many are reserved are then that pool's.
        test: measure accuracies on the test split too.
    """

    nets: int | None = None
    reserved: int | None = None
    start: Pool | str | Path | None = None
    test: bool = False

    def shares(self, start: Pool | None) -> tuple[int, int]:
        """Number of networks, and of those that are reserved.

        Raises:
            RequestError: impossible numbers, or others than the pool to start from has.
        """
        if start is None:
            shares = (NETS if self.nets is None else self.nets, RESERVED if self.reserved is None else self.reserved)
            check_shares(*shares)
            return shares
        shares = (len(start), start.facts.reserved)
        if self.nets not in (None, shares[0]) or self.reserved not in (None, shares[1]):
            raise RequestError(
                f"the pool to start from has {shares[0]} networks and reserves {shares[1]}, which stays so: ask for no "
                "other numbers"
            )
        return shares


@dataclass(frozen=True)
class TrajectoriesConfig(_Config):
    """Configuration of expert trajectories.

    Attributes:
        experts: how many.
    """

    model: str | ModelFactory = "convnet"
    scheme: str = "default"
    training: TrainRecipe = EXPERT_TRAINING
    max_gb: float = TRAJECTORIES_GB
    experts: int = EXPERTS

    def __post_init__(self) -> None:
        if self.experts < 1 or self.training.epochs < 1:
            raise RequestError(
                f"{self.experts} experts of {self.training.epochs} epochs are no trajectories: ask for 1 or more each"
            )

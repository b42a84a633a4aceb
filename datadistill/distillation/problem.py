"""Problem of a run, from its configuration: names become a network, initial weights, numbers and operations."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datadistill.data.ipc import resolve_ipc
from datadistill.data.real import RealData
from datadistill.distillation.config import RunConfig, config_of
from datadistill.distilled import DistilledData
from datadistill.engine import kernels
from datadistill.engine.functional import Network
from datadistill.engine.networks import network_for
from datadistill.methods import record_of
from datadistill.methods.base import Method, Problem, Synthesis
from datadistill.models import SCHEMES, has_own_weights, model_name
from datadistill.pretraining.initial_weights import KINDS, Fixed
from datadistill.pretraining.pool import Pool, load_pool
from datadistill.pretraining.trajectories import Trajectories, load_trajectories
from datadistill.utils import ranks
from datadistill.utils.errors import RequestError, unknown_name
from datadistill.utils.progress import Reporter
from datadistill.utils.runtime import resolve_device


def make_problem(real: RealData, config: RunConfig | None = None, **options: Any) -> Problem:
    """A problem, with the data and the network on the device.

    Args:
        real: the dataset.
        config: what is asked for; keywords are put on top of it.
        **options: by the names of `RunConfig`'s fields, as for `distill`.

    Raises:
        RequestError: a name is unknown, or the network, the pool or the trajectories cannot be used.
        TypeError: there is no option of that name.
    """
    config = config_of(None, config, options)
    device, pool, trajectories = resolve_device(config.device), _pool(config), _trajectories(config)
    network = network_for(config.model, real, device, config.batch_norm, config.engine.kernels)
    kind, scheme = KINDS.get(config.weights), SCHEMES.get(config.scheme).name
    if pool is not None:
        scheme = _scheme_of(pool, network, config, real)
    elif trajectories is not None:
        scheme = trajectories.facts.scheme
    elif kind.name == "fixed-pretrained" and not has_own_weights(config.model):
        raise RequestError(
            f"fixed-pretrained needs trained weights, and {config.model} has none of its own: give a pool with --pool, "
            "or a model function of your own that returns a trained network"
        )
    return Problem(
        real=real.to(device),
        network=network,
        model=model_name(config.model),
        starts=kind.make(network, scheme, config.seed, pool),
        kind=kind.name,
        scheme=scheme,
        ipc=resolve_ipc(config.images_per_class, real),
        seed=config.seed,
        attack=None if config.attack is None else _classes(real, config.attack),
        batch_norm=network.batch_norm,
        engine=config.engine,
        pool=pool,
        trajectories=trajectories,
    )


def check_asked(method: Method | Synthesis, problem: Problem) -> None:
    """Refuse a pool that has fewer networks than an outer step takes, and experts that nobody would use.

    Raises:
        RequestError: naming both numbers, or the method.
    """
    info = record_of(method)
    if problem.trajectories is not None and not info.needs.experts:
        raise RequestError(f"method {method.name} learns from no experts: leave the trajectories out")
    wanted = 1 if problem.starts.fixed is not None else info.networks(method)
    pool = problem.pool
    if pool is not None and wanted > len(pool.for_distilling):
        raise RequestError(
            f"an outer step takes {wanted} networks, but the pool has {len(pool.for_distilling)} for distilling and "
            f"{pool.facts.reserved} for judging: lower --networks, or make a larger pool"
        )


def with_kernels(problem: Problem, before: Sequence[str] | None, reporter: Reporter) -> tuple[Problem, tuple[str, ...]]:
    """The problem on a network with our operations, and their names.

    Args:
        problem: what is distilled.
        before: the operations that the run was started with, if it was.
        reporter: is told where they cannot be had any more.
    """
    asked = problem.engine.kernels
    if problem.device.type != "cpu" or asked == "off":
        return problem, ()
    ranks.first_here(lambda: kernels.prepare(reporter.say))
    operations = ranks.from_first(lambda: kernels.chosen(asked, kernels.measured()))
    if before is not None and set(before) != set(operations):
        operations = tuple(name for name in before if name in kernels.measured())
        if len(operations) < len(before):
            reporter.say(
                "the run was started with operations of ours that cannot be had here: its last bits will differ."
            )
    return problem.with_kernels(",".join(operations) or "off"), operations


def _pool(config: RunConfig) -> Pool | None:
    return load_pool(config.pool) if isinstance(config.pool, str | Path) else config.pool


def _trajectories(config: RunConfig) -> Trajectories | None:
    given = config.trajectories
    return load_trajectories(given) if isinstance(given, str | Path) else given


def started_like(problem: Problem, distilled: DistilledData, kind: str) -> Problem:
    """The same problem with the initial weights of distilled data, which must have some, as its one start."""
    own = distilled.to(problem.device).initial_weights
    assert own is not None
    network = problem.network.holding(own)
    return replace(problem, network=network, kind=kind, starts=Fixed(own, network.frozen))


def _scheme_of(pool: Pool, network: Network, config: RunConfig, real: RealData) -> str:
    """Initialisation scheme of a pool, where it can be used."""
    kind = KINDS.get(config.weights)
    if not kind.pretrained:
        raise RequestError(f"{kind.name} draws its weights: a pool is for random-pretrained and fixed-pretrained")
    pool.check_fits(network, model_name(config.model), real)
    return pool.facts.scheme


def _classes(real: RealData, attack: tuple[str, str]) -> tuple[int, int]:
    for name in attack:
        if name not in real.classes:
            raise unknown_name(f"class of {real.name}", name, real.classes)
    if attack[0] == attack[1]:
        raise RequestError(f"the attack is to take class {attack[0]} for itself: name two different classes")
    return real.classes.index(attack[0]), real.classes.index(attack[1])

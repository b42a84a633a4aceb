"""Jobs: calls of `distill` as data, made from recipes, run folders and flags."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datadistill.data.real import RealData
from datadistill.distillation.loop import Run, distill
from datadistill.distillation.optimizer import Outer
from datadistill.engine import Engine
from datadistill.experiments.recipes import RUN_DEFAULTS, ExpertsRecipe, PoolRecipe, Recipe
from datadistill.methods import METHODS
from datadistill.methods.base import Method
from datadistill.pretraining.make import make_pool, make_trajectories
from datadistill.pretraining.pool import Pool, load_pool
from datadistill.pretraining.trajectories import Trajectories
from datadistill.utils.errors import DamagedFileError, RequestError
from datadistill.utils.progress import Bar, Reporter, quiet


@dataclass(frozen=True)
class Job:
    """What `distill` is asked, less the data.

    Attributes:
        run: every key of `recipes.RUN_DEFAULTS`.
        method: with its hyper-parameters.
        outer: of the outer loop.
        engine: how hypergradients are computed.
    """

    run: dict[str, Any]
    method: Method
    outer: Outer
    engine: Engine

    def start(
        self, real: RealData, pool: Pool | None, out: Path, resume: bool, command: str, reporter: Reporter
    ) -> Run:
        """Distil; arguments are those of `distill`."""
        asked = {name: self.run[name] for name in RUN_DEFAULTS if name not in ("dataset", "zca", "pool")}
        return distill(
            real,
            self.method,
            **asked,
            pool=pool,
            outer=self.outer,
            engine=self.engine,
            out=out,
            resume=resume,
            command=command,
            reporter=reporter,
        )


def make_job(settings: dict[str, dict[str, Any]]) -> Job:
    """A job from `run`, `method` (with its name), `outer` and `engine`.

    Raises:
        RequestError: a value is impossible.
        DamagedFileError: a name is unknown, which only a run's own file can hold.
    """
    method = dict(settings["method"])
    try:
        return Job(
            run={**RUN_DEFAULTS, **settings["run"]},
            method=METHODS.get(method.pop("name")).build(method),
            outer=Outer(**settings["outer"]),
            engine=Engine(**settings["engine"]),
        )
    except TypeError as error:
        raise DamagedFileError(f"the run's config.json is damaged: {error}") from error


def check_nets(nets: int | None, weights: str, reserved: int | None) -> None:
    """Refuse before a run what would be refused after it.

    Args:
        nets: to judge by.
        weights: the kind of initial weights.
        reserved: networks for judging that the pool has, if there is one.

    Raises:
        RequestError: the pool has too few.
    """
    if weights == "random-pretrained" and reserved is not None and nets is not None and nets > reserved:
        raise RequestError(f"nets is {nets}, but the pool has {reserved} networks for judging")


def get_pool(
    asked: PoolRecipe,
    folder: Path,
    load: Callable[[str], RealData],
    *,
    device: str = "auto",
    say: Callable[[str], None] = lambda text: None,
    bar: Bar = quiet,
) -> Pool:
    """The pool that a recipe asks for: the one in a folder, or a new one there.

    Args:
        asked: what its networks must be.
        folder: where pools lie.
        load: gives a dataset by name, where networks have to be trained.
        device: to train on.
        say: called with a sentence worth reading.
        bar: shows progress.

    Raises:
        RequestError: another pool is there.
        Interrupted: Ctrl-C; networks that are finished are kept, and the next call goes on with them.
    """
    path = folder / asked.file_name
    if path.exists():
        pool = load_pool(path)
        _check_same(pool, asked)
        return pool
    with bar(f"training {asked.nets} networks", asked.nets * asked.training.epochs) as count:
        return make_pool(
            load(asked.dataset),
            path,
            model=asked.model,
            scheme=asked.scheme,
            nets=asked.nets,
            reserved=asked.reserved,
            training=asked.training,
            batch_norm=asked.batch_norm,
            seed=asked.seed,
            device=device,
            resume=path.with_name(path.name + ".parts").exists(),
            command=asked.command,
            say=say,
            count=count,
        )


def get_trajectories(
    recipe: Recipe,
    asked: ExpertsRecipe,
    folder: Path,
    real: RealData,
    *,
    device: str = "auto",
    say: Callable[[str], None] = lambda text: None,
    bar: Bar = quiet,
) -> Trajectories:
    """The trajectories that a recipe matches: those in a folder, or new ones there.

    Args:
        recipe: says which networks.
        asked: what its experts must be.
        folder: where trajectories lie.
        real: the recipe's dataset.
        device: to train on.
        say: called with a sentence worth reading.
        bar: shows progress.

    Raises:
        RequestError: others are there.
        Interrupted: Ctrl-C; experts that are finished are kept, and the next call goes on with them.
    """
    settings, training = recipe.settings(), asked.training
    run, matched_on = settings["run"], settings["method"].get("matched_on", "same")
    model = run["model"] if matched_on == "same" else matched_on
    path = folder / asked.folder_name(run["dataset"] + ("-zca" if run["zca"] else ""), model)
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in training.known().items())
    with bar(f"training {asked.count} experts", asked.count * training.epochs) as count:
        return make_trajectories(
            real,
            path,
            model=model,
            scheme=run["scheme"],
            experts=asked.count,
            training=training,
            batch_norm=run["batch_norm"],
            seed=asked.seed,
            device=device,
            resume=path.exists(),
            command=f"datadistill pretrain --trajectories --dataset {run['dataset']}{' --zca' * run['zca']} "
            f"--model {model} --scheme {run['scheme']} --nets {asked.count} {options} --seed {asked.seed}",
            say=say,
            count=count,
        )


def _check_same(pool: Pool, asked: PoolRecipe) -> None:
    facts = pool.facts
    there = {name: getattr(facts, name) for name in ("dataset", "model", "scheme", "batch_norm", "reserved", "seed")}
    wanted = {name: getattr(asked, name) for name in there} | {"model": asked.model.lower(), "nets": asked.nets}
    there |= {"nets": len(pool), **facts.training.words(), "start": facts.start}
    wanted |= {**asked.training.words(), "start": ""}
    for name, value in there.items():
        if value != wanted[name]:
            raise RequestError(
                f"the pool {pool.path} has {name} {value}, but the recipe asks for {wanted[name]}: "
                "name another folder for pools"
            )

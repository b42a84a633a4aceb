"""Pools and trajectories that recipes start from."""

import shlex
from collections.abc import Callable
from pathlib import Path

from datadistill.data.real import RealData
from datadistill.experiments.recipes import PoolRecipe, Recipe
from datadistill.methods import record_of
from datadistill.pretraining.make import make_pool, make_trajectories
from datadistill.pretraining.pool import Pool, load_pool
from datadistill.pretraining.trajectories import Trajectories
from datadistill.utils import ranks
from datadistill.utils.errors import RequestError
from datadistill.utils.progress import SILENT, Screen


def check_nets(nets: int | None, weights: str, reserved: int | None) -> None:
    """Check of the number of networks, before a run instead of after it.

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
    device: str = "auto",
    screen: Screen = SILENT,
) -> Pool:
    """The pool that a recipe asks for: the one in a folder, or a new one there.

    Args:
        asked: what its networks must be.
        folder: where pools lie.
        load: gives a dataset by name, where networks have to be trained.
        device: to train on.
        screen: who is told how it is doing.

    Raises:
        RequestError: another pool is there.
        Interrupted: a signal; networks that are finished are kept, and the next call goes on with them.
    """
    path = folder / asked.file_name
    if ranks.from_first(path.exists):
        pool = load_pool(path)
        _check_same(pool, asked)
        return pool
    with screen.bar(f"training {asked.nets} networks", asked.nets * asked.training.epochs) as count:
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
            say=screen.say,
            count=count,
        )


def get_trajectories(
    recipe: Recipe, folder: Path, real: RealData, device: str = "auto", screen: Screen = SILENT
) -> Trajectories:
    """The trajectories that a recipe matches: those in a folder, or new ones there.

    Raises:
        RequestError: others are there.
        Interrupted: a signal; experts that are finished are kept, and the next call goes on with them.
    """
    config, asked = recipe.config(), recipe.experts
    assert asked is not None, "a recipe that matches none has none to get"
    training = asked.training
    proxy, zca = record_of(config.method).proxy(config.method), config.data.zca
    model = str(config.model) if proxy == "same" else proxy
    path = folder / asked.folder_name(config.dataset + "-zca" * zca, model)
    words = ["--dataset", config.dataset, *["--zca"] * zca, "--model", model, "--scheme", config.scheme]
    words += ["--nets", str(asked.count), *training.as_words(), "--seed", str(asked.seed)]
    with screen.bar(f"training {asked.count} experts", asked.count * training.epochs) as count:
        return make_trajectories(
            real,
            path,
            model=model,
            scheme=config.scheme,
            experts=asked.count,
            training=training,
            batch_norm=config.batch_norm,
            seed=asked.seed,
            device=device,
            resume=path.exists(),
            command=shlex.join(["datadistill", "pretrain", "--trajectories", *words]),
            say=screen.say,
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

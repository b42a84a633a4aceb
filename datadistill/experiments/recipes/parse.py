"""A recipe's TOML file becomes a recipe; whatever it holds that a recipe does not is refused."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from datadistill.experiments.recipes.record import (
    Expect,
    ExpertsRecipe,
    Point,
    PoolRecipe,
    Recipe,
    Sweep,
    check_keys,
    parse_expect,
)
from datadistill.pretraining.make import EXPERT_TRAINING
from datadistill.training.recipe import FLAGS, TrainRecipe
from datadistill.utils.errors import RequestError


def parse_recipe(name: str, data: Mapping[str, Any]) -> Recipe:
    """A recipe from what its TOML file holds.

    Raises:
        RequestError: something is missing, unknown or impossible.
    """
    try:
        check_keys("file", data, [entry.name for entry in fields(Recipe) if entry.name != "name"])
        parts = dict(data)
        parts["expect"] = Expect(**parse_expect(parts.get("expect", {})))
        parts["baselines"] = tuple(parts.get("baselines", ()))
        if "pool" in parts:
            parts["pool"] = _pool(parts["pool"])
        if "experts" in parts:
            parts["experts"] = _experts(parts["experts"])
        if "sweep" in parts:
            check_keys("sweep", parts["sweep"], ("axis", "points"))
            points = tuple(_point(point) for point in parts["sweep"]["points"])
            parts["sweep"] = Sweep(parts["sweep"]["axis"], points)
        return Recipe(name=name, **parts)
    except (TypeError, KeyError) as error:
        raise RequestError(f"recipe {name} is wrong: {error}") from error


def _pool(data: Mapping[str, Any]) -> PoolRecipe:
    check_keys("pool", data, [*(entry.name for entry in fields(PoolRecipe) if entry.name != "training"), *FLAGS])
    own = {key: value for key, value in data.items() if key not in FLAGS}
    return PoolRecipe(**own, training=TrainRecipe().told(**{key: data[key] for key in FLAGS if key in data}))


def _experts(data: Mapping[str, Any]) -> ExpertsRecipe:
    check_keys("experts", data, ["count", "seed", *FLAGS])
    own = {key: data[key] for key in ("count", "seed") if key in data}
    changes = {key: value for key, value in data.items() if key not in own}
    return ExpertsRecipe(**own, training=EXPERT_TRAINING.told(**changes))


def _point(data: Mapping[str, Any]) -> Point:
    check_keys("sweep.points", data, [entry.name for entry in fields(Point)])
    return Point(**data)

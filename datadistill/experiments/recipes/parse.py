"""Parser of recipes in TOML; whatever a file holds that a recipe does not is refused."""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from datadistill.data import is_named
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
from datadistill.models.gate import names_in, refuse
from datadistill.pretraining.config import EXPERT_TRAINING
from datadistill.training.recipe import FLAGS, TrainRecipe
from datadistill.utils.errors import RequestError

_NAMING = ("run", "method", "outer", "engine", "pool")
"""The parts of a recipe in which a name can be that of a network or a dataset."""


def parse_recipe(name: str, data: Mapping[str, Any]) -> Recipe:
    """A recipe from what its TOML file holds.

    Raises:
        RequestError: something is missing, unknown or impossible.
    """
    try:
        check_keys("file", data, [entry.name for entry in fields(Recipe) if entry.name != "name"])
        _check_names(name, data)
        json.dumps(data)  # refuses the dates that TOML has
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
    except RequestError:
        raise
    except (TypeError, LookupError, ValueError, AttributeError, ArithmeticError) as error:
        raise RequestError(f"recipe {name} is wrong: {error}") from error


def _check_names(name: str, data: Mapping[str, Any]) -> None:
    """Refuse names of code, of what is to be fetched and of files: a recipe may be anybody's."""
    parts = [data, data.get("full", {}), *data.get("sweep", {}).get("points", ())]
    groups = [part.get(group, {}) for part in parts for group in _NAMING if isinstance(part, Mapping)]
    named = [one for group in groups if isinstance(group, Mapping) for one in names_in(group)]
    listed = [one for one in named if one.kind == "dataset" and is_named(one.name)]
    refuse(
        f"recipe {name}",
        [one for one in named if one not in listed],
        "a recipe's file may name what `datadistill list` does; the rest is given in Python, to Recipe",
    )


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

"""Recipes: published or shipped results as data, one TOML file each."""

import tomllib
from functools import cache
from importlib import resources

from datadistill.experiments.recipes.parse import parse_recipe
from datadistill.experiments.recipes.record import Expect, ExpertsRecipe, Point, PoolRecipe, Recipe, Sweep
from datadistill.utils.registry import Registry

__all__ = [
    "Expect",
    "ExpertsRecipe",
    "Point",
    "PoolRecipe",
    "Recipe",
    "Sweep",
    "parse_recipe",
    "recipes",
]


@cache
def recipes() -> Registry[Recipe]:
    """All recipes that are shipped."""
    folder = resources.files("datadistill.experiments.recipes")
    files = {f.name.removesuffix(".toml"): f for f in folder.iterdir() if f.name.endswith(".toml")}
    found = [parse_recipe(name, tomllib.loads(files[name].read_text("utf-8"))) for name in sorted(files)]
    return Registry("recipe", tuple(found))

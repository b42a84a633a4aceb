"""Recipes: published or shipped results as data, one TOML file each."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from datadistill.registry import Registry


@dataclass(frozen=True)
class Recipe:
    """A run as data.

    Attributes:
        name: what people type; the file's name.
        line: one line of explanation.
        run: dataset, model, weights, scheme and iterations.
        method: name and hyper-parameters.
        outer: hyper-parameters of the outer loop.
        paper: the source of a published figure; `before`, `after` and their `_std` as fractions; empty without one.
    """

    name: str
    line: str
    run: dict[str, Any]
    method: dict[str, Any]
    outer: dict[str, Any]
    paper: dict[str, Any]


@cache
def recipes() -> Registry[Recipe]:
    """All recipes that are shipped."""
    folder = resources.files("datadistill") / "recipes"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda file: file.name)
    found = [(file.name.removesuffix(".toml"), tomllib.loads(file.read_text("utf-8"))) for file in files]
    return Registry(
        "recipe",
        tuple(
            Recipe(name, data["line"], data["run"], data["method"], data["outer"], data.get("paper", {}))
            for name, data in found
        ),
    )

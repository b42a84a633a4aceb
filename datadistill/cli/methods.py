"""Flags of all methods, and what is taken where none is given."""

import argparse
import textwrap
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from datadistill.cli.parsing import Parser, add_fields, given_fields, in_cases
from datadistill.data.ipc import PROPORTIONAL
from datadistill.experiments.recipes import RUN_DEFAULTS, Recipe, recipes
from datadistill.methods import METHODS, MethodInfo
from datadistill.utils.errors import RequestError

RECIPE_FOR = {
    "fixed-init": "mnist-fixed-10",
    "random-init": "mnist-random-100",
    "fixed-pretrained": "mnist-fixed-10",
    "random-pretrained": "mnist-random-100",
}
"""What method dd takes without flags, by the kind of initial weights."""


def add_method_flags(parser: Parser, changes: Mapping[str, Any]) -> None:
    """A flag for every hyper-parameter of every method; methods that share one share its flag.

    Args:
        parser: takes the flags.
        changes: hyper-parameters of method dd that are not its recipes'.
    """
    bases = {kind: recipes().get(name).method | dict(changes) for kind, name in RECIPE_FOR.items()}
    seen: set[str] = set()
    for cls in dict.fromkeys(info.make for info in METHODS):
        infos = [info for info in METHODS if info.make is cls]
        group = parser.add_argument_group(f"method {' and '.join(info.name for info in infos)}")
        ours = bases if infos[0].name == "dd" else {info.name: info.defaults for info in infos}
        add_fields(group, cls, ours, skip=seen)
        shared = [entry for entry in fields(cls) if entry.name in seen]
        if shared:
            texts = [f"--{entry.name.replace('_', '-')} ({in_cases(ours, entry)})" for entry in shared]
            group.description = textwrap.fill("also " + ", ".join(texts), 76, break_on_hyphens=False)
        seen |= {entry.name for entry in fields(cls)}


def given_options(arguments: argparse.Namespace, info: MethodInfo) -> dict[str, Any]:
    """The method's hyper-parameters that were given as flags.

    Raises:
        RequestError: one of another method was given.
    """
    mine = {entry.name for entry in fields(info.make)}
    for other in METHODS:
        for name in given_fields(arguments, other.make):
            if name not in mine:
                raise RequestError(f"--{name.replace('_', '-')} is a flag of method {other.name}, not of {info.name}")
    return given_fields(arguments, info.make)


def chosen_recipe(arguments: argparse.Namespace) -> Recipe | None:
    """The recipe that flags change; None for a method that starts from its paper's settings.

    Raises:
        RequestError: a recipe of another method.
    """
    asked, named = getattr(arguments, "recipe", None), arguments.method
    if asked is None and named not in (None, "dd"):
        return None
    recipe = recipes().get(asked or RECIPE_FOR[arguments.weights or "fixed-init"])
    if named not in (None, recipe.method["name"]):
        raise RequestError(f"recipe {recipe.name} is for method {recipe.method['name']}: leave --method out")
    return recipe


def settings_of(info: MethodInfo, ipc: int | float | str | None) -> dict[str, dict[str, Any]]:
    """What a method's paper asks: `run`, `method`, `outer` and `engine`, as recipes have them.

    Args:
        info: the method.
        ipc: images per class, as asked for; `proportional:N` counts as one, for it does not say how many classes.
    """
    run = {**RUN_DEFAULTS, **info.run}
    if isinstance(ipc, str):
        shares = [] if ipc.startswith(PROPORTIONAL) else [int(word) for word in ipc.split(",")]
        ipc = sum(shares) / len(shares) if shares else None
    own = info.by_ipc(float(run["ipc"] if ipc is None else ipc))
    outer = {**info.outer, **own.get("outer", {})}
    method = {"name": info.name, **info.defaults}
    return {"run": run | own.get("run", {}), "method": method, "outer": outer, "engine": {}}

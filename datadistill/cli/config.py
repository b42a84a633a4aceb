"""Flags of a run, made from `RunConfig`, and their defaults."""

import argparse
import textwrap
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from datadistill.cli.common import add_data_flags, steps_for
from datadistill.cli.parsing import Parser, add_fields, given_fields, in_cases, one_of
from datadistill.data import RealData, Source, load
from datadistill.data.ipc import PROPORTIONAL
from datadistill.distillation.config import RunConfig
from datadistill.distillation.optimizer import Outer
from datadistill.distillation.problem import make_problem
from datadistill.experiments.recipes import Recipe, recipes
from datadistill.experiments.strategy import AUTO, LINE
from datadistill.methods import METHODS, Method, MethodInfo, Problem, Synthesis, options_of
from datadistill.utils.errors import RequestError
from datadistill.utils.fields import options_in
from datadistill.utils.progress import say


def add_config_flags(
    parser: Parser, changes: Mapping[str, Any] | None = None, skip: Collection[str] = (), recipe: bool = False
) -> None:
    """A flag for every option of a run.

    Args:
        parser: takes the flags.
        changes: hyper-parameters that are not the recipe's, where flags change a recipe.
        skip: fields of `RunConfig` that have no flag.
        recipe: whether there is one to name a recipe.
    """
    default = RunConfig()
    add_data_flags(parser, default.dataset)
    if recipe:
        parser.add_argument("--recipe", metavar="NAME", help="start from this recipe: datadistill list recipes")
    otherwise = f"{AUTO} where --ipc is given and nothing of a method or the outer loop, else {default.method.name}"
    parser.add_argument(
        "--method",
        type=one_of(METHODS.kind, [*METHODS.names(), AUTO]) if recipe else one_of(METHODS.kind, METHODS.names()),
        metavar="NAME",
        help=f"{', '.join(METHODS.names())}"
        + (f", or {AUTO}: {LINE} (default: {otherwise})" if recipe else f" (default: {default.method.name})"),
    )
    bases = {info.name: vars(start_of(info)[1]) for info in METHODS}
    groups = [option for option in options_in(RunConfig) if option.group]
    done = {"dataset", "method", *(option.name for option in groups), *skip}
    add_fields(parser, RunConfig, bases, skip=done)
    _add_method_flags(parser, changes or {})
    cases = _cases()
    for option in groups:
        if option.group and option.name not in ("data", *skip):
            ours = {case: vars(getattr(config, option.name)) for case, config in cases.items()}
            title = parser.add_argument_group(option.line.rstrip("."))
            add_fields(title, option.group, ours, option.flag.prefix)


def is_open(arguments: argparse.Namespace) -> bool:
    """Whether the flags leave it to a strategy which method is taken, and with what outer loop.

    Raises:
        RequestError: method auto beside a flag of a method or of the outer loop, which it would not heed.
    """
    own = [name for info in METHODS for name in given_fields(arguments, info.make)]
    own += [f"outer_{name}" for name in given_fields(arguments, Outer, "outer_")]
    if arguments.method == AUTO and own:
        raise RequestError(f"--{own[0].replace('_', '-')} goes with a method: name one with --method, not {AUTO}")
    if arguments.method is not None or getattr(arguments, "recipe", None) is not None:
        return str(arguments.method) == AUTO
    return arguments.ipc is not None and arguments.weights in (None, "random-init") and not own


def _cases() -> dict[str, RunConfig]:
    """Configs without flags, by case: for a method with recipes, by the kind of initial weights."""
    cases: dict[str, RunConfig] = {}
    for info in METHODS:
        cases |= {kind: recipes().get(name).config() for kind, name in info.recipes.items()}
        cases |= {} if info.recipes else {info.name: paper(info)}
    return cases


def _add_method_flags(parser: Parser, changes: Mapping[str, Any]) -> None:
    """A flag for every hyper-parameter of every method; methods that share one share its flag."""
    seen: set[str] = set()
    for cls in dict.fromkeys(info.make for info in METHODS):
        infos = [info for info in METHODS if info.make is cls]
        group = parser.add_argument_group(f"method {' and '.join(info.name for info in infos)}")
        ours: dict[str, Mapping[str, Any]] = {}
        for info in infos:
            ours |= {kind: recipes().get(name).method | dict(changes) for kind, name in info.recipes.items()}
            ours |= {} if info.recipes else {info.name: info.defaults}
        add_fields(group, cls, ours, skip=seen)
        options = options_in(cls)
        texts = [f"--{one.name.replace('_', '-')} ({in_cases(ours, one)})" for one in options if one.name in seen]
        if texts:
            group.description = textwrap.fill("also " + ", ".join(texts), 76, break_on_hyphens=False)
        seen |= {one.name for one in options}


def config_given(arguments: argparse.Namespace, base: RunConfig) -> RunConfig:
    """A config with what was given as flags put on top of it.

    Raises:
        RequestError: a value is impossible, or a hyper-parameter is another method's.
    """
    info = METHODS.get(base.method.name)
    groups = {option.name: option for option in options_in(RunConfig) if option.group}
    run = {name: value for name, value in given_fields(arguments, RunConfig).items() if name not in ("method", *groups)}
    if run.keys() & {"iterations", "budget"}:
        run = {"iterations": None, "budget": None} | run
    given: dict[str, Mapping[str, Any]] = {
        name: given_fields(arguments, option.group, option.flag.prefix)
        for name, option in groups.items()
        if option.group
    }
    return base.changed({"run": run, "method": _given_hyper_parameters(arguments, info), **given})


def _given_hyper_parameters(arguments: argparse.Namespace, info: MethodInfo) -> dict[str, Any]:
    mine = {entry.name for entry in fields(info.make)}
    for other in METHODS:
        for name in given_fields(arguments, other.make):
            if name not in mine:
                raise RequestError(f"--{name.replace('_', '-')} is a flag of method {other.name}, not of {info.name}")
    return given_fields(arguments, info.make)


def start_of(
    info: MethodInfo, weights: str | None = None, ipc: int | float | str | None = None
) -> tuple[Recipe | None, RunConfig]:
    """Config that flags start from: a method's recipe for this kind of initial weights, or its paper's settings."""
    name = info.recipes.get(weights or RunConfig().weights)
    if name is None:
        return None, paper(info, ipc)
    recipe = recipes().get(name)
    config = recipe.config()
    usual = options_of(config.method).get("steps")
    # Nobody has asked for as many steps as the recipe has: so many images must be cut into them.
    return recipe, config.changed({"method": {"steps": steps_for(usual, ipc)}}) if usual else config


def chosen_config(arguments: argparse.Namespace) -> tuple[Recipe | None, RunConfig]:
    """Config that flags start from: the recipe that is named, or the method's own.

    Raises:
        RequestError: a recipe of another method.
    """
    asked, named = getattr(arguments, "recipe", None), arguments.method
    if asked is None:
        return start_of(METHODS.get(named or RunConfig().method.name), arguments.weights, arguments.ipc)
    recipe = recipes().get(asked)
    config = recipe.config()
    if named not in (None, config.method.name):
        raise RequestError(f"recipe {recipe.name} is for method {config.method.name}: leave --method out")
    return recipe, config


def paper(info: MethodInfo, ipc: int | float | str | None = None) -> RunConfig:
    """Config of a method's paper.

    Args:
        info: the method.
        ipc: images per class, as asked for; `proportional:N` counts as one, for it does not say how many classes.
    """
    method = info.build({})
    if isinstance(ipc, str):
        shares = [] if ipc.startswith(PROPORTIONAL) else [int(word) for word in ipc.split(",")]
        ipc = sum(shares) / len(shares) if shares else None
    own = info.by_ipc(float(info.run.get("ipc", info.ipc(method)) if ipc is None else ipc))
    config = RunConfig(method=method).changed({"run": info.run, "outer": info.outer})
    return config.changed(own)


def load_for(config: RunConfig, root: str | None, before: Source | None = None) -> RealData:
    """Dataset of a config.

    Args:
        config: names it, and says how it is read.
        root: where official dataset files lie.
        before: where an earlier run had it from, whose name for it is kept.
    """
    real = load(config.dataset, root, **asdict(config.data))
    if before is None or real.source is None:
        return real
    return replace(real, source=replace(real.source, given=before.given))


def problem_given(arguments: argparse.Namespace, changes: Mapping[str, Any] | None = None) -> tuple[Method, Problem]:
    """Problem by the flags of `add_config_flags`, for a command about a run that has not started.

    Args:
        arguments: parsed.
        changes: hyper-parameters that are not the recipe's, where flags change a recipe.

    Raises:
        RequestError: a value is impossible, or the method has no outer step.
    """
    recipe, base = chosen_config(arguments)
    if recipe is not None:
        base = base.changed({"method": {n: v for n, v in (changes or {}).items() if n in options_of(base.method)}})
    config = config_given(arguments, base)
    if isinstance(config.method, Synthesis):
        raise RequestError(f"method {config.method.name} optimises nothing: it has no outer step to look at")
    problem = make_problem(load_for(config, arguments.data_root), config)
    for remark in problem.network.remarks:
        say(remark)
    return config.method, problem

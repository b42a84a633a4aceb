"""The flags that say what is to be distilled, for commands that look at a run before it starts."""

import argparse
from collections.abc import Mapping
from typing import Any

from datadistill.cli.common import (
    add_batch_norm_flag,
    add_data_flags,
    add_ipc_flag,
    add_model_flag,
    add_pool_flag,
    given_pool,
    load_data,
)
from datadistill.cli.distill import RECIPE_FOR
from datadistill.cli.parsing import Parser, add_fields, given_fields, one_of
from datadistill.inner import Engine
from datadistill.methods import DD, METHODS, Method, Problem, make_problem
from datadistill.recipes import recipes
from datadistill.runtime import resolve_device
from datadistill.weights import KINDS


def add_problem_flags(parser: Parser, changes: Mapping[str, Any]) -> None:
    """Data, network, initial weights, method and engine.

    Args:
        parser: takes the flags.
        changes: hyper-parameters that are not the recipe's.
    """
    add_data_flags(parser, "mnist")
    parser.add_argument(
        "--method",
        type=one_of("method", METHODS.names()),
        metavar="NAME",
        default="dd",
        help="default: %(default)s",
    )
    add_model_flag(parser, "lenet")
    parser.add_argument(
        "--weights",
        type=one_of(KINDS.kind, KINDS.names()),
        metavar="KIND",
        default="fixed-init",
        help=f"initial weights: {' or '.join(KINDS.names())} (default: %(default)s)",
    )
    parser.add_argument("--scheme", metavar="NAME", help="how initial weights are drawn: datadistill list schemes")
    add_pool_flag(parser)
    add_ipc_flag(parser)
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of all randomness (default: %(default)s)")
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu or cuda (default: auto)")
    add_batch_norm_flag(parser)
    bases = {kind: recipes().get(name).method | dict(changes) for kind, name in RECIPE_FOR.items()}
    add_fields(parser.add_argument_group("method dd"), DD, bases)
    add_fields(parser.add_argument_group("engine"), Engine, {"": {}})


def problem_of(arguments: argparse.Namespace, changes: Mapping[str, Any]) -> tuple[Method, Problem]:
    """What the flags of `add_problem_flags` ask for."""
    recipe = recipes().get(RECIPE_FOR[arguments.weights])
    options = {name: value for name, value in recipe.method.items() if name != "name"}
    method = METHODS.get(arguments.method).make(**{**options, **changes, **given_fields(arguments, DD)})
    problem = make_problem(
        load_data(arguments.dataset or "mnist", arguments),
        model=arguments.model,
        weights=arguments.weights,
        scheme=arguments.scheme or recipe.run["scheme"],
        ipc=arguments.ipc or method.steps,
        seed=arguments.seed,
        device=resolve_device(arguments.device),
        engine=Engine(**given_fields(arguments, Engine)),
        batch_norm=arguments.batch_norm or "refused",
        pool=given_pool(arguments),
    )
    return method, problem

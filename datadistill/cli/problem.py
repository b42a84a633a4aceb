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
    add_trajectories_flag,
    given_pool,
    load_data,
)
from datadistill.cli.methods import add_method_flags, chosen_recipe, given_options, settings_of
from datadistill.cli.parsing import Parser, add_fields, given_fields, one_of
from datadistill.engine import Engine
from datadistill.methods import METHODS, Method, Problem, make_problem
from datadistill.pretraining.initial_weights import KINDS
from datadistill.pretraining.trajectories import load_trajectories
from datadistill.utils.progress import say
from datadistill.utils.runtime import resolve_device


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
    add_model_flag(parser, None, "lenet; convnet for methods but dd")
    parser.add_argument(
        "--weights",
        type=one_of(KINDS.kind, KINDS.names()),
        metavar="KIND",
        help=f"initial weights: {' or '.join(KINDS.names())} (default: fixed-init; random-init for methods but dd)",
    )
    parser.add_argument("--scheme", metavar="NAME", help="how initial weights are drawn: datadistill list schemes")
    add_pool_flag(parser)
    add_trajectories_flag(parser)
    add_ipc_flag(parser)
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of all randomness (default: %(default)s)")
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu or cuda (default: auto)")
    add_batch_norm_flag(parser)
    add_method_flags(parser, changes)
    add_fields(parser.add_argument_group("engine"), Engine, {"": {}})


def problem_of(arguments: argparse.Namespace, changes: Mapping[str, Any]) -> tuple[Method, Problem]:
    """What the flags of `add_problem_flags` ask for."""
    recipe, info = chosen_recipe(arguments), METHODS.get(arguments.method)
    run, options, _, _ = (settings_of(info, arguments.ipc) if recipe is None else recipe.settings()).values()
    own = {**options, **(changes if info.name == "dd" else {}), **given_options(arguments, info)}
    del own["name"]
    method = info.build(own)
    problem = make_problem(
        load_data(arguments.dataset or "mnist", arguments, zca=run["zca"]),
        model=arguments.model or run["model"],
        weights=arguments.weights or run["weights"],
        scheme=arguments.scheme or run["scheme"],
        ipc=arguments.ipc or getattr(method, "steps", 1),
        seed=arguments.seed,
        device=resolve_device(arguments.device),
        engine=Engine(**given_fields(arguments, Engine)),
        batch_norm=arguments.batch_norm or "auto",
        pool=given_pool(arguments),
        trajectories=None if arguments.trajectories is None else load_trajectories(arguments.trajectories),
    )
    for remark in problem.network.remarks:
        say(remark)
    return method, problem

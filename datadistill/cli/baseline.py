"""baseline: distilled data that is chosen, not optimised."""

import argparse
import shlex
from dataclasses import replace
from pathlib import Path

from datadistill.baselines import BASELINES
from datadistill.cli.common import (
    add_data_flags,
    add_nets_flag,
    add_pool_flag,
    add_run_flags,
    given_pool,
    load_data,
    new_folder,
    print_table,
)
from datadistill.cli.parsing import Parser, command_line, one_of, positive_int
from datadistill.distilled import FILE_NAME
from datadistill.evaluation import NETS, evaluate, percent
from datadistill.methods import make_problem
from datadistill.progress import counting
from datadistill.report.card import judging
from datadistill.runs import RunFolder
from datadistill.runtime import resolve_device, versions
from datadistill.weights import KINDS

USAGE = ""
DESCRIPTION = """\
Choose real images instead of optimising synthetic ones, with a learning rate
tuned on held-out training data, and judge them as any distilled data.

example:
  datadistill baseline --how random --weights random-init --steps 10 --epochs 3
"""


def add_flags(parser: Parser) -> None:
    names = BASELINES.names()
    parser.add_argument(
        "--how", type=one_of("baseline", names), metavar="NAME", default="random", help=", ".join(names)
    )
    add_data_flags(parser, "mnist")
    parser.add_argument("--model", metavar="NAME", default="lenet", help="the network (default: %(default)s)")
    parser.add_argument(
        "--weights",
        type=one_of(KINDS.kind, KINDS.names()),
        metavar="KIND",
        default="random-init",
        help="initial weights (default: %(default)s)",
    )
    parser.add_argument("--scheme", metavar="NAME", default="xavier", help="how they are drawn (default: %(default)s)")
    parser.add_argument("--ipc", type=positive_int, metavar="N", help="images per class (default: one for each step)")
    parser.add_argument("--steps", type=positive_int, metavar="N", default=10, help="batches (default: %(default)s)")
    parser.add_argument(
        "--epochs", type=positive_int, metavar="N", default=3, help="walks over them (default: %(default)s)"
    )
    add_pool_flag(parser)
    add_run_flags(parser)
    add_nets_flag(parser)


def run(arguments: argparse.Namespace) -> None:
    folder = None if arguments.out is None else RunFolder(Path(arguments.out))
    if folder is not None:
        folder.check_free()
    real = load_data(arguments.dataset or "mnist", arguments)
    problem = make_problem(
        real,
        model=arguments.model,
        weights=arguments.weights,
        scheme=arguments.scheme,
        ipc=arguments.ipc or arguments.steps,
        seed=arguments.seed or 0,
        device=resolve_device(arguments.device or "auto"),
        pool=given_pool(arguments),
    )
    info = BASELINES.get(arguments.how)
    with counting("choosing", info.pieces) as count:
        data = info.choose(problem, arguments.steps, arguments.epochs, count)
    with counting("evaluating", arguments.nets or NETS) as count:
        score = evaluate(data, problem.real, nets=arguments.nets, pool=problem.pool, count=count)
    recipe = f"datadistill baseline --how {arguments.how} --dataset {real.name} --model {problem.model} "
    recipe += "" if problem.pool is None else f"--pool {shlex.quote(arguments.pool)} "
    recipe += f"--weights {problem.kind} --scheme {problem.scheme} --ipc {problem.ipc} "
    recipe += f"--steps {arguments.steps} --epochs {arguments.epochs} --seed {problem.seed}"
    provenance = replace(
        data.provenance,
        versions=versions(),
        scores=[*data.provenance.scores, score.as_json()],
        recipe=recipe,
    )
    data = replace(data, provenance=provenance)
    place = new_folder(f"{real.name}-{arguments.how}-{problem.ipc}") if folder is None else folder.path
    with RunFolder(place).locked():
        data.save(place / FILE_NAME)
    assert data.learning_rates is not None
    print_table(
        f"{len(data.labels)} real images, rate {float(data.learning_rates[0]):g} tuned on held-out data",
        ["test accuracy", "these images"],
        [["before", percent(score.before)], [f"{score.nets} networks trained", percent(score.accuracy)]],
    )
    print(f"folder    {place}")
    print(f"evaluate  {command_line(*judging(data, str(place), problem.pool))}")

"""check: a method's gradient on your network, against finite differences."""

import argparse
import json
import math
from typing import Any

from datadistill.cli.common import print_table
from datadistill.cli.config import add_config_flags, problem_given
from datadistill.cli.parsing import Parser, positive_int
from datadistill.methods import Method, Problem
from datadistill.methods.gradcheck import STEPS, TOLERANCE, Check, Row, check_hypergradient, rows_of
from datadistill.utils.errors import DatadistillError
from datadistill.utils.progress import counting, tell
from datadistill.utils.runtime import stream, versions

USAGE = ""
DESCRIPTION = """\
Check that the gradient of the distilled images and learning rates is right for a
network: first that every layer can be differentiated twice, then, in float64,
that the gradient agrees with finite differences of the outer loss.

What is not given is as in a run: it comes from the recipe mnist-fixed-10 for fixed
initial weights, mnist-random-100 for random ones; only real images and networks
are fewer.

examples:
  datadistill check
  datadistill check --dataset digits --model ConvNetD2W16 --storage checkpoint
"""

_SMALL = {"batch": 64, "batch_last": 0, "networks": 1}
"""A gradient is as right on few images as on many."""


def add_flags(parser: Parser) -> None:
    add_config_flags(parser, _SMALL, skip=("iterations", "budget", "attack", "outer"))
    parser.add_argument(
        "--directions",
        type=positive_int,
        metavar="N",
        default=3,
        help="random directions in the images of each batch (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(arguments: argparse.Namespace) -> None:
    method, problem = problem_given(arguments, _SMALL)
    rows = rows_of(method.resolve(problem).init(problem, stream(problem.seed, "start"))[0])
    with counting("checking", rows) as count:
        check = check_hypergradient(method, problem, directions=arguments.directions, count=count)
    if arguments.json:
        print(json.dumps(_document(method, problem, check), indent=2))
    else:
        _print(method, problem, check)
    if not check.passed:
        wrong = [row.name for row in check.rows if not row.agrees]
        others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise DatadistillError(
            f"the gradient of {wrong[0]}{others} is wrong: the largest relative error is {check.worst.error:.1e}, but "
            f"{TOLERANCE:g} is allowed; if --model mlp passes, a layer of {problem.model} has a wrong derivative"
        )


def _print(method: Method, problem: Problem, check: Check) -> None:
    engine = problem.engine
    print_table(
        f"method {method.name}, {problem.model}, {problem.kind}, storage {engine.storage}, hvp {engine.hvp}, float64",
        ["slope along", "from the gradient", "finite differences", "relative error", ""],
        [_line(row, check.is_exact) for row in check.rows],
    )
    for remark in check.remarks:
        tell(remark)
    if check.is_exact and check.passed:
        tell(f"the gradient is right: the largest relative error is {check.worst.error:.1e}, {TOLERANCE:g} is allowed")
    if not check.is_exact:
        tell(
            f"storage {engine.storage} with hvp {engine.hvp} is declared approximate: the largest relative "
            f"error is {check.worst.error:.1e}"
        )


def _line(row: Row, is_exact: bool) -> list[str]:
    verdict = ("ok" if row.agrees else "wrong") if is_exact else "approximate"
    columns = ["\n".join(f"{slope:.6e}" for slope in slopes) for slopes in (row.analytic, row.numeric)]
    return [row.name, *columns, f"{row.error:.1e}", verdict]


def _document(method: Method, problem: Problem, check: Check) -> dict[str, Any]:
    return {
        "method": method.name,
        "model": problem.model,
        "weights": problem.kind,
        "dataset": problem.real.origin,
        "storage": problem.engine.storage,
        "hvp": problem.engine.hvp,
        "exact": check.is_exact,
        "passed": check.passed,
        "tolerance": TOLERANCE,
        "steps": STEPS,
        "outer_loss": _number(check.loss),
        "largest_error": _number(check.worst.error),
        "rows": [
            {
                "name": row.name,
                "analytic": [_number(slope) for slope in row.analytic],
                "numeric": [_number(slope) for slope in row.numeric],
                "error": _number(row.error),
                "agrees": row.agrees,
            }
            for row in check.rows
        ],
        "remarks": list(check.remarks),
        "versions": versions(),
    }


def _number(value: float) -> float | None:
    """A number as JSON has it, which knows no infinities."""
    return value if math.isfinite(value) else None

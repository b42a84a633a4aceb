"""reproduce: a published experiment is run from its recipe and checked against its expected range."""

import argparse
import json
from pathlib import Path
from typing import Any

from datadistill.cli.common import add_data_root_flag, print_table
from datadistill.cli.parsing import Parser, add_fields, given_fields
from datadistill.evaluation import Summary, percent
from datadistill.experiments.recipes import Recipe, recipes
from datadistill.experiments.recipes.measured import Measured, load_measured, record_measured
from datadistill.experiments.recipes.record import range_text
from datadistill.experiments.reproduce import Changes, reproduce
from datadistill.experiments.verdict import Line, Verdict, check, parse_line
from datadistill.report.card import CURVE_NAME
from datadistill.utils import ranks
from datadistill.utils.errors import DatadistillError, RequestError
from datadistill.utils.progress import Progress, Screen, clock, counting, say, tell

USAGE = "[ID]"
DESCRIPTION = """\
Run an experiment from its recipe: make the pool of trained networks it starts from,
distil, judge on networks that distilling never saw, judge baselines beside it, and
say whether all is as expected (exit code 0) or not (1).

--iterations, --budget and fewer --nets try a shorter form, which gets no verdict;
--full takes the published one, where the recipe is smaller so that a laptop can run
it. Nothing is expected of baselines, so a run with --no-baselines has its verdict,
and --resume judges them later.

examples:
  datadistill reproduce --list
  datadistill reproduce mnist-fixed-10
  datadistill reproduce usps-mnist-pretrained-100 --data-root data --resume
"""


def add_flags(parser: Parser) -> None:
    parser.add_argument("id", nargs="?", metavar="ID", help="an experiment: datadistill reproduce --list")
    parser.add_argument("--list", action="store_true", help="all experiments, with what they gave when last recorded")
    parser.add_argument("--out", metavar="DIR", help="where to write (default: runs/reproduce-ID)")
    parser.add_argument(
        "--pools", metavar="DIR", default="pools", help="where pools lie, and are made (default: %(default)s)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with what --out holds")
    add_data_root_flag(parser)
    add_fields(parser, Changes, {"": {}})
    parser.add_argument(
        "--full", action="store_true", help="the published experiment, where the recipe is a smaller one"
    )
    parser.add_argument("--no-baselines", action="store_true", help="judge only what was distilled")
    parser.add_argument(
        "--record", action="store_true", help="for developers: keep what a full run gave in the package, for --list"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(arguments: argparse.Namespace) -> None:
    if arguments.list:
        _list(arguments.json)
        return
    if arguments.id is None:
        raise RequestError("reproduce needs the ID of an experiment: datadistill reproduce --list names them")
    recipe = recipes().get(arguments.id)
    if arguments.full:
        recipe = recipe.in_full()
    shorter = not (arguments.iterations is arguments.budget is arguments.nets is None)
    if arguments.record and shorter:
        raise RequestError("--record takes a run in full: leave out --iterations, --budget and --nets")
    verdict = reproduce(
        recipe,
        arguments.out or Path("runs") / f"reproduce-{recipe.name}",
        Changes(**given_fields(arguments, Changes)),
        pools=arguments.pools,
        data_root=arguments.data_root,
        resume=arguments.resume,
        baselines=not arguments.no_baselines,
        screen=Screen(Progress, counting, say),
    )
    if arguments.record and ranks.leads():
        record_measured(recipe.name, verdict.as_measured())
    if arguments.json:
        print(json.dumps(verdict.as_json(), indent=2))
    else:
        _print(verdict)
    if verdict.passed is False:
        raise DatadistillError(f"{recipe.name}: {verdict.sentence()}")
    if not arguments.json:
        tell(verdict.sentence())


def _print(verdict: Verdict) -> None:
    recipe, own = verdict.recipe, verdict.lines[0]
    paper = [recipe.paper["source"]] if recipe.paper else []
    title = f"{recipe.name}, {verdict.seconds:.0f} s of distilling on {_machine(verdict.device, verdict.threads)}"
    if recipe.sweep is not None:
        rows = [[line.name, *_figures(line)] for line in verdict.lines]
        print_table(title, [recipe.sweep.axis, "images", "nets", "before", "test accuracy"], rows)
        tell(f"expected  {recipe.expect}")
        tell(f"curve     {verdict.folder / CURVE_NAME}")
        return
    expected = "" if recipe.expect.accuracy is None else range_text(*recipe.expect.accuracy)
    columns = ["", "images", "nets", "before", "test accuracy", "expected", *paper]
    published = " to ".join(text for text in map(recipe.published, ("before", "after")) if text)
    rows = [[own.name, *_figures(own), expected, published]]
    rows += [[line.name, *_figures(line), "", ""] for line in verdict.lines[1:]]
    print_table(title, columns, [row[: len(columns)] for row in rows])
    if own.falls:
        _print_falls(recipe, own)
    tell(f"run folder  {verdict.folder / 'run'}")


def _figures(line: Line) -> list[str]:
    return [str(line.images), str(line.nets), percent(line.before), percent(line.accuracy)]


def _print_falls(recipe: Recipe, line: Line) -> None:
    attacked, target = recipe.run["attack"]
    rows = [
        [f"{name}, to be taken for {target}" if name == attacked else name, f"{100 * fall:.1f} points"]
        for name, fall in line.falls.items()
    ]
    print_table(f"what it costs {line.nets} good networks; expected: {recipe.expect}", ["class", "accuracy lost"], rows)


def _machine(device: str, threads: int) -> str:
    return f"cpu, {threads} thread{'' if threads == 1 else 's'}" if device == "cpu" else device


def _list(as_json: bool) -> None:
    measured = load_measured()
    if as_json:
        print(json.dumps([_entry(recipe, measured.get(recipe.name)) for recipe in recipes()], indent=2))
        return
    for recipe in recipes():
        tell(f"{recipe.name}: {recipe.line}")
        tell(f"    expected {recipe.expect}; {_last(recipe, measured.get(recipe.name))}")


def _last(recipe: Recipe, found: Measured | None) -> str:
    if found is None:
        return "not measured yet"
    if found.is_stale(recipe):
        return f"stale: the recipe has changed since it was measured on {found.date}"
    value = percent(Summary(found.value, found.std, (0.0, 0.0)))
    value = value if found.what == "accuracy" else f"{found.what} {value.replace('%', 'points')}"
    nets = "one network" if found.nets == 1 else f"{found.nets} networks"
    machine = _machine(found.device, found.threads)
    passed = "pass" if _passed(recipe, found) else "FAIL"
    return f"{passed}: measured {value} on {nets}, {clock(found.seconds)} of distilling on {machine}, {found.date}"


def _passed(recipe: Recipe, found: Measured) -> bool:
    """Whether what was measured is within what is expected now."""
    return all(entry.passed for entry in check(recipe, [parse_line(line) for line in found.details]))


def _entry(recipe: Recipe, found: Measured | None) -> dict[str, Any]:
    """A recipe for programs; a stale value is left out."""
    entry = {
        "recipe": recipe.name,
        "line": recipe.line,
        "expected": {name: value for name, value in vars(recipe.expect).items() if value is not None},
        "paper": recipe.paper,
    }
    if found is None or found.is_stale(recipe):
        return entry | {"stale": found is not None, "measured": None}
    measured = {name: value for name, value in vars(found).items() if name != "digest"}
    return entry | {"stale": False, "measured": measured | {"passed": _passed(recipe, found)}}

"""list: what there is, one line each."""

import argparse
from collections.abc import Iterable

from datadistill.baselines import BASELINES
from datadistill.cli.parsing import Parser, one_of
from datadistill.data import DATASETS
from datadistill.evaluation import PROTOCOLS
from datadistill.experiments.recipes import recipes
from datadistill.formats import FORMATS
from datadistill.methods import METHODS
from datadistill.models import MODELS, NORMS, SCHEMES
from datadistill.pretraining.initial_weights import KINDS
from datadistill.utils.progress import tell
from datadistill.utils.registry import Info

USAGE = "WHAT"
DESCRIPTION = """\
List what there is to choose from, one line each.

example:
  datadistill list models
"""

_WHAT = ("methods", "models", "datasets", "recipes", "weights", "schemes", "norms", "protocols", "baselines", "formats")


def add_flags(parser: Parser) -> None:
    parser.add_argument("what", type=one_of("list", _WHAT), metavar="WHAT", help=", ".join(_WHAT))


def run(arguments: argparse.Namespace) -> None:
    tables: dict[str, Iterable[Info]] = {
        "methods": METHODS,
        "models": MODELS,
        "datasets": DATASETS,
        "recipes": recipes(),
        "weights": KINDS,
        "schemes": SCHEMES,
        "norms": NORMS,
        "protocols": PROTOCOLS,
        "baselines": BASELINES,
        "formats": FORMATS,
    }
    records = list(tables[arguments.what])
    width = max(len(record.name) for record in records)
    for record in records:
        tell(f"{record.name:<{width}}  {record.line}")

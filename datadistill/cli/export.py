"""export: distilled data for another program."""

import argparse
from pathlib import Path

from datadistill.cli.common import add_data_flags, add_nets_flag, add_run_flag, load_data
from datadistill.cli.parsing import Parser, one_of
from datadistill.distilled import DistilledData, load_distilled
from datadistill.evaluation import evaluate, percent, work_of
from datadistill.formats import FORMATS, export_to
from datadistill.formats.png import cost, rounded
from datadistill.utils.progress import counting, tell
from datadistill.utils.runtime import resolve_device

USAGE = "PATH --to FORMAT"
DESCRIPTION = """\
Write distilled data as another program reads it: datadistill list formats. What a
format cannot hold is named; for png also what 8 bits do to the pixels and, with
--dataset, to the accuracy.

examples:
  datadistill export runs/RUN --to npz
  datadistill export gallery/mnist-fixed-10 --to png --out ten --dataset mnist
"""


def add_flags(parser: Parser) -> None:
    parser.add_argument("path", metavar="PATH", help="a .safetensors file, or a run or gallery folder")
    parser.add_argument(
        "--to",
        type=one_of(FORMATS.kind, FORMATS.names()),
        metavar="FORMAT",
        required=True,
        help="; ".join(f"{info.name}: {info.line}" for info in FORMATS),
    )
    parser.add_argument("--out", metavar="PATH", help="where nothing is yet (default: beside the data)")
    add_data_flags(parser, "none; with one, png measures the accuracy before and after")
    add_run_flag(parser, "model", "the data's own")
    add_nets_flag(parser)
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or mps (default: auto)")


def run(arguments: argparse.Namespace) -> None:
    distilled, info = load_distilled(arguments.path), FORMATS.get(arguments.to)
    source = Path(arguments.path)
    beside = source if source.is_dir() else source.parent
    out = Path(arguments.out or beside / f"{source.resolve().stem}-{info.name}{info.suffix}")
    lost = export_to(distilled, info.name, out)
    tell(str(out))
    if lost:
        tell(f"not in it: {'; '.join(lost)}")
    if info.name == "png":
        tell(str(cost(distilled)))
        if arguments.dataset is not None:
            _compare(distilled, arguments)


def _compare(distilled: DistilledData, arguments: argparse.Namespace) -> None:
    """What 8 bits do to the accuracy."""
    real = load_data(arguments.dataset, arguments).to(resolve_device(arguments.device))
    for name, data in (("as it was", distilled), ("in 8 bits", rounded(distilled))):
        with counting(f"evaluating {name}", work_of(data, arguments.nets)) as count:
            score = evaluate(data, real, model=arguments.model, nets=arguments.nets, count=count)
        tell(f"test accuracy {name}: {percent(score.accuracy)}")

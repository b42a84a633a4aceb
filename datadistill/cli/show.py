"""show: a picture of distilled data."""

import argparse
from pathlib import Path

from datadistill.cli.parsing import Parser
from datadistill.distilled import load_distilled
from datadistill.report.sheet import SHEET_NAME, save_sheet

USAGE = "PATH"
DESCRIPTION = """\
Write a PNG sheet of all images, with the class names.

example:
  datadistill show gallery/mnist-fixed-10 --out ten.png
"""


def add_flags(parser: Parser) -> None:
    parser.add_argument("path", metavar="PATH", help="a .safetensors file, or a run or gallery folder")
    parser.add_argument("--out", metavar="FILE", help="the picture (default: beside the data)")


def run(arguments: argparse.Namespace) -> None:
    path = Path(arguments.path)
    distilled = load_distilled(path)
    beside = path / SHEET_NAME if path.is_dir() else path.with_suffix(".png")
    picture = Path(arguments.out) if arguments.out else beside
    save_sheet(distilled, picture)
    print(picture)

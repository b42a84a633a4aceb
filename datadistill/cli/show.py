"""show: a picture of distilled data."""

import argparse
from pathlib import Path

from datadistill.cli.parsing import Parser
from datadistill.distilled import load_distilled
from datadistill.report.sheet import SHEET_NAME, sheet_file
from datadistill.utils.files import check_free, write_atomically
from datadistill.utils.progress import tell

USAGE = "PATH"
DESCRIPTION = """\
Write a PNG sheet of all images, with the class names.

example:
  datadistill show gallery/mnist-fixed-10 --out ten.png
"""


def add_flags(parser: Parser) -> None:
    parser.add_argument("path", metavar="PATH", help="a .safetensors file, or a run or gallery folder")
    parser.add_argument("--out", metavar="FILE", help="the picture, where nothing is yet (default: beside the data)")


def run(arguments: argparse.Namespace) -> None:
    path = Path(arguments.path)
    distilled = load_distilled(path)
    beside = path / SHEET_NAME if path.is_dir() else path.with_suffix(".png")
    picture = Path(arguments.out) if arguments.out else beside
    content = sheet_file(distilled)
    if not (picture.is_file() and picture.read_bytes() == content):  # a run has its picture already
        check_free(picture)
        write_atomically(picture, content)
    tell(str(picture))

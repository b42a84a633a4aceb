"""show: a picture of distilled data."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from datadistill.cli.parsing import Parser
from datadistill.distilled import DistilledData, load_distilled
from datadistill.report.sheet import SHEET_NAME, sheet_file
from datadistill.report.terminal import print_images
from datadistill.utils.files import check_free, write_atomically
from datadistill.utils.progress import tell

USAGE = "PATH"
DESCRIPTION = """\
Write a PNG sheet of all images, with the class names; on a terminal, print them too.

examples:
  datadistill show gallery/mnist-fixed-10 --out ten.png
  datadistill show runs/RUN --terminal
"""


def add_flags(parser: Parser) -> None:
    parser.add_argument("path", metavar="PATH", help="a .safetensors file, or a run or gallery folder")
    parser.add_argument("--out", metavar="FILE", help="the picture, where nothing is yet (default: beside the data)")
    parser.add_argument("--terminal", action="store_true", help="print the images and, without --out, write no picture")


def run(arguments: argparse.Namespace) -> None:
    path = Path(arguments.path)
    distilled = load_distilled(path)
    if arguments.terminal or (not arguments.out and sys.stdout.isatty()):
        print_images(distilled, Console(force_terminal=True if arguments.terminal else None))
    if arguments.out or not arguments.terminal:
        tell(str(_save(distilled, path, arguments.out)))


def _save(distilled: DistilledData, path: Path, out: str | None) -> Path:
    beside = path / SHEET_NAME if path.is_dir() else path.with_suffix(".png")
    picture = Path(out) if out else beside
    content = sheet_file(distilled)
    if not (picture.is_file() and picture.read_bytes() == content):  # a run has its picture already
        check_free(picture)
        write_atomically(picture, content)
    return picture

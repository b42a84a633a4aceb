"""report: one HTML page of a run, a file or several, with images, curves and tables."""

import argparse
from dataclasses import replace
from pathlib import Path

from datadistill.cli.common import add_data_flags, load_data
from datadistill.cli.parsing import Parser
from datadistill.distillation.run_folder import RunFolder
from datadistill.models.gate import passed
from datadistill.report.look import look_at
from datadistill.report.page import PAGE_NAME, Line, Subject, make_page, read_comparison, read_subject
from datadistill.utils.errors import RequestError
from datadistill.utils.files import check_free, write_atomically
from datadistill.utils.progress import tell

USAGE = "PATH..."
DESCRIPTION = """\
Write one HTML page that holds all it shows: images in true and stretched range and
over the run, curves, a comparison of several sets, settings, and how to use the file.

examples:
  datadistill report runs/RUN
  datadistill report runs/RUN --real
  datadistill report a.safetensors b.safetensors --out both.html
  datadistill compare runs/RUN --baselines random --json > table.json
  datadistill report runs/RUN table.json --out compared.html
"""


def add_flags(parser: Parser) -> None:
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="a .safetensors file, a run or gallery folder, or the .json that `compare --json` writes",
    )
    parser.add_argument(
        "--out", metavar="FILE", help=f"the page, where nothing is yet (default: {PAGE_NAME} in a run, or here)"
    )
    parser.add_argument(
        "--real",
        action="store_true",
        help="read the real dataset too: the nearest training image of each, and which classes a network confuses",
    )
    add_data_flags(parser, "the one it was made from, with --real")


def run(arguments: argparse.Namespace) -> None:
    paths = [Path(path) for path in arguments.paths]
    tables = [path for path in paths if path.suffix.lower() == ".json"]
    sets = [path for path in paths if path not in tables]
    if not sets:
        raise RequestError("a page shows distilled data: give a run folder or a .safetensors file beside the .json")
    lines: list[Line] = [line for path in tables for line in read_comparison(path)]
    subjects = [_subject(path, arguments) for path in sets]
    is_run = len(paths) == 1 and RunFolder(sets[0]).exists() and not arguments.out
    page, content = Path(arguments.out or (sets[0] / PAGE_NAME if is_run else PAGE_NAME)), make_page(subjects, lines)
    if not (page.is_file() and (is_run or page.read_bytes() == content)):  # a run's page is made anew
        check_free(page)
    write_atomically(page, content)
    tell(str(page))


def _subject(path: Path, arguments: argparse.Namespace) -> Subject:
    subject = read_subject(path)
    if not arguments.real:
        return subject
    name = passed("dataset", arguments.dataset, subject.distilled.provenance.dataset, data_root=arguments.data_root)
    return replace(subject, look=look_at(subject.distilled, load_data(name, arguments, like=subject.distilled)))

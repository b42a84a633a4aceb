"""Flags and tables that several commands share."""

import argparse
import re
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from datadistill.cli.parsing import one_of, positive_int
from datadistill.data import DATASETS, RealData, load
from datadistill.errors import plain
from datadistill.evaluation import NETS
from datadistill.pools import Pool, load_pool


def add_data_flags(parser: argparse._ActionsContainer, dataset: str) -> None:
    """`--dataset`, `--data-root`; `dataset` says what is taken without the flag."""
    names = ", ".join(DATASETS.names())
    parser.add_argument("--dataset", metavar="NAME", help=f"one of {names} (default: {dataset})")
    add_data_root_flag(parser)


def add_data_root_flag(parser: argparse._ActionsContainer) -> None:
    """`--data-root`."""
    parser.add_argument(
        "--data-root",
        metavar="DIR",
        help="where official dataset files lie; what is not there is fetched into the cache "
        "(default: the environment variable DATADISTILL_DATA)",
    )


def add_model_flag(parser: argparse._ActionsContainer, default: str | None, otherwise: str = "") -> None:
    """`--model`; `otherwise` says what is taken without the flag, if that is no default."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        default=default,
        help="the network: a name (datadistill list models), your own as package.module:function or net.py:function, "
        f"timm:NAME or torchvision:NAME (default: {otherwise or default})",
    )


def add_run_flags(parser: argparse._ActionsContainer) -> None:
    """`--seed`, `--device`, `--out`."""
    parser.add_argument("--seed", type=int, metavar="N", help="of all randomness (default: 0)")
    parser.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--out", metavar="DIR", help="where to write (default: a new folder in runs/)")


def add_batch_norm_flag(parser: argparse._ActionsContainer, default: str = "refused") -> None:
    """`--batch-norm`."""
    parser.add_argument(
        "--batch-norm",
        type=one_of("batch norm policy", ("refused", "batch", "frozen")),
        metavar="POLICY",
        help="layers with running statistics: batch uses each batch's own, frozen what the network has "
        f"(default: {default})",
    )


def add_nets_flag(parser: argparse._ActionsContainer) -> None:
    """`--nets`."""
    parser.add_argument(
        "--nets",
        type=positive_int,
        metavar="N",
        help=f"fresh networks to judge by; fixed initial weights need one (default: {NETS}, or all that the pool has)",
    )


def add_pool_flag(parser: argparse._ActionsContainer) -> None:
    """`--pool`."""
    parser.add_argument(
        "--pool", metavar="FILE", help="trained networks for the pretrained kinds of weights: datadistill pretrain"
    )


def given_pool(arguments: argparse.Namespace) -> Pool | None:
    """The pool of `--pool`."""
    return None if arguments.pool is None else load_pool(arguments.pool)


def load_data(name: str, arguments: argparse.Namespace) -> RealData:
    """The dataset, from `--data-root` where that is given."""
    return load(name, arguments.data_root)


def file_name(model: str) -> str:
    """A network's name as a part of a file's, which the place of its code is not."""
    return re.sub(r"[^\w.-]+", "-", Path(model).name.lower())


def new_folder(name: str) -> Path:
    """`runs/NAME`, or the first of `runs/NAME-2`, `runs/NAME-3`, ... that is free."""
    root, count = Path("runs"), 1
    folder = root / name
    while folder.exists():
        count += 1
        folder = root / f"{name}-{count}"
    return folder


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A small table on standard output; the first column is text, the others are figures."""
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(Text(plain(column)), justify="right" if index else "left")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(Text(plain(title)), style="bold")
    console.print(table)

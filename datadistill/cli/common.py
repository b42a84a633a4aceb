"""Flags and tables that several commands share."""

import argparse
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from datadistill.cli.parsing import add_fields, add_option, given_fields, in_cases, one_of, positive_int
from datadistill.data import Options, RealData, is_named, load
from datadistill.distillation.config import RunConfig
from datadistill.distilled import DistilledData
from datadistill.evaluation import PROTOCOLS, EvalConfig, Score, percent
from datadistill.evaluation.config import DC_SETTINGS
from datadistill.methods import METHODS
from datadistill.pretraining.pool import Pool, load_pool
from datadistill.utils.errors import plain
from datadistill.utils.fields import options_in
from datadistill.utils.runtime import versions


def add_run_flag(
    parser: argparse._ActionsContainer, name: str, otherwise: str = "", default: str | None = None
) -> None:
    """Flag of `RunConfig`, as `distill` has it.

    Args:
        parser: takes the flag.
        name: of the field of `RunConfig`.
        otherwise: what is taken without it, in words, where it is not what `distill` takes.
        default: and as a value.
    """
    (option,) = (option for option in options_in(RunConfig) if option.name == name)
    add_option(parser, option, otherwise or default or option.flag.otherwise or in_cases({"": {}}, option))
    parser.set_defaults(**{name: default})


def add_data_flags(parser: argparse._ActionsContainer, dataset: str) -> None:
    """`--dataset`, how it is read, `--data-root`; `dataset` says what is taken without the flag."""
    add_run_flag(parser, "dataset", dataset)
    add_fields(parser, Options, {"": {}})
    add_data_root_flag(parser)


def add_data_root_flag(parser: argparse._ActionsContainer) -> None:
    """`--data-root`."""
    parser.add_argument(
        "--data-root",
        metavar="DIR",
        help="where official dataset files lie; what is not there is fetched into the cache "
        "(default: the environment variable DATADISTILL_DATA)",
    )


def add_workers_flag(parser: argparse.ArgumentParser) -> None:
    """`--workers`, which `utils.workers` answers before anything is parsed."""
    parser.add_argument(
        "--workers",
        type=positive_int,
        metavar="N",
        help="processes of this machine that share the networks (default: one, with a thread for each core); under "
        "torchrun and srun leave it out (docs/ranks.md)",
    )


def add_nets_flag(parser: argparse._ActionsContainer) -> None:
    """`--nets`."""
    (option,) = (option for option in options_in(EvalConfig) if option.name == "nets")
    add_option(parser, option, option.flag.otherwise)


def add_eval_flags(parser: argparse._ActionsContainer) -> None:
    """A flag for every option of `EvalConfig` but the network and the pool."""
    parser.add_argument(
        "--protocol",
        type=one_of(PROTOCOLS.kind, PROTOCOLS.names()),
        metavar="NAME",
        default=EvalConfig().protocol,
        help="how networks are trained: "
        + "; ".join(f"{p.name}: {p.line}" for p in PROTOCOLS)
        + " (default: %(default)s)",
    )
    group = parser.add_argument_group("protocol dc (docs/protocols.md)")
    add_fields(parser, EvalConfig, {"": {}}, skip=DC_SETTINGS)
    others = [entry.name for entry in fields(EvalConfig) if entry.name not in DC_SETTINGS]
    add_fields(group, EvalConfig, {"": {}}, skip=others)


def given_config(arguments: argparse.Namespace) -> EvalConfig:
    """Evaluation config by the flags of `evaluate` and `compare`, but for the network."""
    return EvalConfig(protocol=arguments.protocol, pool=given_pool(arguments), **given_fields(arguments, EvalConfig))


def protocol_title(protocol: str, scores: Sequence[Score]) -> str:
    """A protocol for a table's title, with its settings where all scores have the same."""
    ways = {score.training for score in scores}
    return f"protocol {protocol}: {ways.pop()}" if len(ways) == 1 and "" not in ways else f"protocol {protocol}"


def accuracy_title(scores: Sequence[Score]) -> str:
    """The heading of accuracies, which says what networks were tested on."""
    return "test accuracy" if all(score.split == "test" for score in scores) else "held-out accuracy"


def steps_for(usual: int, ipc: int | float | str | Sequence[int] | None) -> int:
    """Default number of steps for some images per class: the greatest common divisor with the usual number."""
    counts = [int(word) for word in ipc.split(",")] if isinstance(ipc, str) and ":" not in ipc else ipc
    if ipc is None:
        return usual
    if isinstance(counts, int):
        return math.gcd(usual, counts)
    return math.gcd(usual, *counts) if isinstance(counts, list | tuple) else 1


def ipc_name(ipc: int | float | str | Sequence[int]) -> str:
    """Images per class as a part of a folder's name."""
    if isinstance(ipc, int | float):
        return str(ipc)
    return ipc.replace(":", "-") if isinstance(ipc, str) and ":" in ipc else "unequal"


def given_models(arguments: argparse.Namespace) -> list[str | None]:
    """The networks of `--models`; None for the data's own."""
    return [*listed(arguments.models)] or [None]


def listed(text: str | None) -> list[str]:
    """The names in `a,b`; none without any text."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def given_pool(arguments: argparse.Namespace) -> Pool | None:
    """The pool of `--pool`."""
    return None if arguments.pool is None else load_pool(arguments.pool)


def load_data(name: str, arguments: argparse.Namespace, like: DistilledData | None = None) -> RealData:
    """The dataset, from `--data-root` where that is given.

    Args:
        name: what `--dataset` takes.
        arguments: with the flags of `add_data_flags`.
        like: distilled data, whose images say how those of one's own are read, and whether any are whitened, where no
            flag does.
    """
    asked: dict[str, Any] = {"zca": like is not None and like.provenance.normalization.zca is not None}
    if like is not None and not is_named(name):
        asked |= {"channels": like.images.shape[1], "size": like.images.shape[3]}
    return load(name, arguments.data_root, **asked | given_fields(arguments, Options))


def repeated(arguments: argparse.Namespace, command: str, skipped: tuple[str, ...]) -> str:
    """The command that these flags were given to, for people to copy.

    Args:
        arguments: parsed; what is None was not given.
        command: its name.
        skipped: flags that make no difference to the result.
    """
    words, skipped = ["datadistill", command], (*skipped, "workers")
    for name, value in vars(arguments).items():
        if name == "method" and value in METHODS.names():
            value = METHODS.get(value).code or value
        if value is not None and value is not False and name not in skipped:
            values = [":".join(value)] if isinstance(value, tuple) else value if isinstance(value, list) else [value]
            words += ["--" + name.replace("_", "-"), *([] if value is True else map(str, values))]
    return shlex.join(words)


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
    console, table = Console(highlight=False), Table()

    def cell(text: str) -> Text:
        # As it is printed in the end (`print_anything`), so that columns have the right width.
        return Text(plain(text).encode(console.encoding, "backslashreplace").decode(console.encoding))

    for index, column in enumerate(columns):
        table.add_column(cell(column), justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(cell, row))
    if not console.is_terminal:
        console.width = 120
    console.print(cell(title), style="bold")
    console.print(table)


@dataclass(frozen=True)
class Fault:
    """A network of several that could not be judged.

    Attributes:
        model: as it was named.
        error: why, in a sentence.
    """

    model: str
    error: str

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"model": self.model, "error": self.error}


def score_cells(score: Score) -> list[str]:
    """Cells of a table: network, weights, number of networks, accuracy before and after, its interval, seconds."""
    low, high = score.accuracy.ci95
    facts = [score.model, score.weights, str(score.nets), percent(score.before), percent(score.accuracy)]
    return [*facts, f"{100 * low:.2f} to {100 * high:.2f}", f"{score.seconds:.1f}"]


def print_faults(faults: Mapping[str, str]) -> None:
    """A table of networks and why they could not be judged, where there are any."""
    if faults:
        print_table("not judged", ["network", "because"], [list(fault) for fault in faults.items()])


def score_document(path: str, real: RealData, protocol: str, scores: Sequence[Score | Fault]) -> dict[str, Any]:
    """What `evaluate --json` and `baseline --json` print of one path; accuracies are fractions."""
    return {
        "path": path,
        "dataset": real.origin,
        "protocol": protocol,
        "results": [score.as_json() for score in scores],
        "chance": 1 / real.num_classes,
        "versions": versions(),
    }

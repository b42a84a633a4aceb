"""Flags and tables that several commands share."""

import argparse
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from datadistill.cli.parsing import images_per_class, number, one_of, positive_int
from datadistill.data import DATASETS, Options, RealData, Source, is_named, load
from datadistill.data.readers.huggingface import PREFIX
from datadistill.distilled import DistilledData
from datadistill.evaluation import NETS, PROTOCOLS, EvalConfig, Score
from datadistill.methods import METHODS
from datadistill.pretraining.pool import Pool, load_pool
from datadistill.training.recipe import DC, EPOCHS_AUGMENTED
from datadistill.utils.errors import RequestError, plain
from datadistill.utils.runtime import versions


def add_data_flags(parser: argparse._ActionsContainer, dataset: str) -> None:
    """`--dataset`, how it is read, `--data-root`; `dataset` says what is taken without the flag."""
    names = ", ".join(DATASETS.names())
    parser.add_argument(
        "--dataset",
        metavar="NAME|FOLDER|FILE.npz|hf:NAME",
        help=f"one of {names}; or your own images: docs/your-data.md (default: {dataset})",
    )
    parser.add_argument(
        "--size",
        type=positive_int,
        metavar="N",
        help="your own images: resize the shorter edge to N pixels and cut out the middle (default: their own size)",
    )
    parser.add_argument(
        "--channels",
        type=positive_int,
        metavar="1|3",
        help="your own images: 1 for grey, 3 for colour (default: grey where all pixels are)",
    )
    parser.add_argument(
        "--white",
        type=number,
        metavar="X",
        help="your own images of more than 8 bits, or of floats: the number that is white, such as 4095 or 1 "
        "(default: inferred from the largest of all)",
    )
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        default=None,
        help="your own images: go on without files that cannot be read (default: say which, and stop)",
    )
    parser.add_argument(
        "--zca",
        action="store_true",
        default=None,
        help="whiten all images: docs/datasets.md (default: as the distilled data or the run was made, or not at all)",
    )
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


def add_batch_norm_flag(parser: argparse._ActionsContainer, default: str = "batch where they are untrained") -> None:
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


def add_protocol_flags(parser: argparse._ActionsContainer, default: str = "own") -> None:
    """`--protocol`, and what protocol dc is asked besides."""
    parser.add_argument(
        "--protocol",
        type=one_of(PROTOCOLS.kind, PROTOCOLS.names()),
        metavar="NAME",
        default=default,
        help="how networks are trained: "
        + "; ".join(f"{p.name}: {p.line}" for p in PROTOCOLS)
        + " (default: %(default)s)",
    )
    group = parser.add_argument_group("protocol dc (docs/protocols.md)")
    group.add_argument(
        "--epochs",
        type=positive_int,
        metavar="N",
        help=f"walks over the images (default: as the data says, or {DC.epochs}, or {EPOCHS_AUGMENTED} with "
        "augmentation)",
    )
    group.add_argument(
        "--augment",
        metavar="PARTS|none",
        help="such as color_crop_cutout_flip_scale_rotate: one part, drawn for each batch, changes the images "
        "(default: as the data says, or none)",
    )
    group.add_argument("--rate", type=number, metavar="X", help="learning rate (default: as the data says, or 0.01)")


def given_changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_protocol_flags` gave, as `evaluate` takes it."""
    return {name: getattr(arguments, name) for name in ("epochs", "augment", "rate")}


def given_config(arguments: argparse.Namespace, pool: Pool | None) -> EvalConfig:
    """What `evaluate` and `compare` were given, as `evaluation.evaluate` takes it, but for the network."""
    names = ("weights", "nets", "protocol", "seed", "scheme", "batch_norm", "epochs", "augment", "rate")
    return EvalConfig(pool=pool, **{name: getattr(arguments, name) for name in names})


def protocol_title(protocol: str, scores: Sequence[Score]) -> str:
    """A protocol for a table's title, with its settings where all scores have the same."""
    ways = {score.training for score in scores}
    return f"protocol {protocol}: {ways.pop()}" if len(ways) == 1 and "" not in ways else f"protocol {protocol}"


def add_ipc_flag(parser: argparse._ActionsContainer) -> None:
    """`--ipc`."""
    parser.add_argument(
        "--ipc",
        type=images_per_class,
        metavar="N",
        help="images per class; or one number for each class as in 5,10,20; or proportional:100, which shares 100 out "
        "as the classes have training images (default: one for each step)",
    )


def steps_for(usual: int, ipc: int | float | str | Sequence[int] | None) -> int:
    """How many steps some images per class are cut into where nobody says: as many of the usual number as go."""
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


def add_pool_flag(parser: argparse._ActionsContainer) -> None:
    """`--pool`."""
    parser.add_argument(
        "--pool", metavar="FILE", help="trained networks for the pretrained kinds of weights: datadistill pretrain"
    )


def add_trajectories_flag(parser: argparse._ActionsContainer) -> None:
    """`--trajectories`."""
    parser.add_argument(
        "--trajectories",
        metavar="FOLDER",
        help="experts' weights after each epoch, for method mtt: datadistill pretrain --trajectories",
    )


def given_pool(arguments: argparse.Namespace) -> Pool | None:
    """The pool of `--pool`."""
    return None if arguments.pool is None else load_pool(arguments.pool)


def load_data(
    name: str,
    arguments: argparse.Namespace,
    like: DistilledData | None = None,
    before: Source | None = None,
    zca: bool = False,
) -> RealData:
    """The dataset, from `--data-root` where that is given.

    Args:
        name: what `--dataset` takes.
        arguments: with the flags of `add_data_flags`.
        like: distilled data, whose images say how those of one's own are read, and whether any are whitened, where no
            flag does.
        before: where an earlier run had it from.
        zca: whiten them without being told by a flag.
    """
    asked = {} if before is None else before.options.flags
    asked["zca"] = zca or (like is not None and like.provenance.normalization.zca is not None)
    if like is not None and not is_named(name):
        asked |= {"channels": like.images.shape[1], "size": like.images.shape[3]}
    flags = {flag: getattr(arguments, flag) for flag in vars(Options())}
    asked |= {flag: value for flag, value in flags.items() if value is not None}
    real = load(name, arguments.data_root, **asked)
    if before is None or real.source is None:
        return real
    return replace(real, source=replace(real.source, given=before.given))


def chosen_dataset(given: str | None, recorded: str) -> str:
    """What the user gave, else the dataset that a file names.

    Raises:
        RequestError: the file names one to be fetched, which nobody but the user may ask for.
    """
    if given is None and recorded.lower().startswith(PREFIX):
        raise RequestError(
            f"the file was made from {recorded}, and nothing is fetched because a file names it: if you mean to, give "
            f"it with --dataset {recorded}"
        )
    return given or recorded


def repeated(arguments: argparse.Namespace, command: str, skipped: tuple[str, ...]) -> str:
    """The command that these flags were given to, for people to copy.

    Args:
        arguments: parsed; what is None was not given.
        command: its name.
        skipped: flags that make no difference to the result.
    """
    words = ["datadistill", command]
    for name, value in vars(arguments).items():
        if name == "method" and value is not None:
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

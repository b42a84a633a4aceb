"""pretrain: many trained networks in one file, for the pretrained kinds of initial weights."""

import argparse
import statistics
import time
from pathlib import Path

from datadistill.cli.common import (
    add_batch_norm_flag,
    add_data_flags,
    add_model_flag,
    file_name,
    load_data,
    print_table,
    repeated,
)
from datadistill.cli.parsing import Parser, add_fields, command_line, given_fields, number, positive_int
from datadistill.experts import MAX_GB, make_pool
from datadistill.pools import Pool
from datadistill.progress import counting, say
from datadistill.training import Training

USAGE = ""
DESCRIPTION = """\
Train networks on a dataset and keep them in one file, a pool. Distilling with
--weights random-pretrained or fixed-pretrained starts from its networks; the last
ones (--reserved) are only for judging what was distilled.

Networks are trained several at a time, one on each core. What is finished is kept
beside the file, and --resume goes on from there, to the same bits.

examples:
  datadistill pretrain
  datadistill pretrain --dataset digits --model mlp --nets 30 --out pools/digits-mlp.safetensors
"""


def add_flags(parser: Parser) -> None:
    add_data_flags(parser, "mnist")
    add_model_flag(parser, "lenet")
    parser.add_argument(
        "--scheme",
        metavar="NAME",
        default="xavier",
        help="how weights before training are drawn: datadistill list schemes (default: %(default)s)",
    )
    parser.add_argument("--nets", type=positive_int, metavar="N", default=50, help="networks (default: %(default)s)")
    parser.add_argument(
        "--reserved",
        type=positive_int,
        metavar="N",
        default=10,
        help="how many of them are for judging only (default: %(default)s)",
    )
    add_fields(parser.add_argument_group("training"), Training, {"": {}})
    add_batch_norm_flag(parser)
    parser.add_argument("--test", action="store_true", help="measure accuracies on the test split too, for the record")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of all randomness (default: %(default)s)")
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--out", metavar="FILE", help="the file (default: pools/DATASET-MODEL.safetensors)")
    parser.add_argument("--resume", action="store_true", help="keep finished networks and train the others")
    parser.add_argument(
        "--max-gb", type=number, metavar="X", default=MAX_GB, help="refuse to take more disk (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> None:
    real = load_data(arguments.dataset or "mnist", arguments)
    training = Training(**given_fields(arguments, Training))
    out = Path(arguments.out or f"pools/{real.name}-{file_name(arguments.model)}.safetensors")
    began = time.perf_counter()
    with counting("training", arguments.nets * training.epochs) as count:
        pool = make_pool(
            real,
            out,
            model=arguments.model,
            scheme=arguments.scheme,
            nets=arguments.nets,
            reserved=arguments.reserved,
            training=training,
            batch_norm=arguments.batch_norm or "refused",
            seed=arguments.seed,
            device=arguments.device,
            test=arguments.test,
            max_gb=arguments.max_gb,
            resume=arguments.resume,
            command=_repeat(arguments),
            say=say,
            count=count,
        )
    _print(pool, out, time.perf_counter() - began, [] if real.source is None else real.source.options.as_words())


def _repeat(arguments: argparse.Namespace) -> str:
    """The command that makes the same networks from the start."""
    return repeated(arguments, "pretrain", ("command", "out", "resume", "data_root", "max_gb", "test"))


def _print(pool: Pool, out: Path, seconds: float, options: list[str]) -> None:
    facts, columns = pool.facts, ["", "networks", "mean", "std", "lowest"]
    rows = [_row("held-out accuracy", facts.accuracies), _row("before rounding", facts.unrounded)]
    if facts.test:
        rows.append(_row("test accuracy", facts.test))
    print_table(
        f"{facts.model} on {facts.dataset}, {facts.training.epochs} epochs, {seconds:.0f} s, "
        f"{out.stat().st_size / 1e6:.1f} MB",
        columns,
        rows,
    )
    print(f"pool      {out}")
    print(f"networks  {len(pool) - facts.reserved} to distil with, {facts.reserved} to judge by")
    words = ["distill", "--dataset", facts.dataset, *options, "--model", facts.model, "--weights", "random-pretrained"]
    print(f"distil    {command_line(*words, '--pool', str(out))}")


def _row(name: str, accuracies: tuple[float, ...]) -> list[str]:
    mean, std = statistics.fmean(accuracies), statistics.stdev(accuracies)
    return [name, str(len(accuracies)), *(f"{100 * value:.2f} %" for value in (mean, std, min(accuracies)))]

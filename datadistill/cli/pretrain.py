"""pretrain: many trained networks, as a pool to start from or as trajectories to match."""

import argparse
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datadistill.cli.common import (
    add_data_flags,
    add_run_flag,
    file_name,
    load_data,
    print_table,
    repeated,
)
from datadistill.cli.parsing import Parser, add_fields, command_line, given_fields, number, positive_int
from datadistill.data import RealData
from datadistill.methods import METHODS
from datadistill.models.gate import passed
from datadistill.pretraining.config import EXPERT_TRAINING, EXPERTS, NETS, RESERVED, PoolConfig, TrajectoriesConfig
from datadistill.pretraining.make import make_pool, make_trajectories
from datadistill.pretraining.pool import Pool, load_pool
from datadistill.pretraining.trajectories import Trajectories
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.errors import RequestError
from datadistill.utils.progress import counting, say, tell

USAGE = ""
DESCRIPTION = """\
Train networks on a dataset and keep them in one file, a pool. Distilling with
--weights random-pretrained or fixed-pretrained starts from its networks; the last
ones (--reserved) are only for judging what was distilled.

With --from: train the networks of another pool further, on this dataset. With --test,
that is what all its training images are worth to networks that know other ones.

With --trajectories: keep their weights after every epoch, one file for each network
in one folder, for --method mtt.

Networks are trained several at a time, one on each core. What is finished is kept
beside the file, or in the folder, and --resume goes on from there, to the same bits.

examples:
  datadistill pretrain
  datadistill pretrain --dataset digits --model mlp --nets 30 --out pools/digits-mlp.safetensors
  datadistill pretrain --dataset usps --from pools/mnist-lenet.safetensors --test --out pools/tuned.safetensors
  datadistill pretrain --trajectories --dataset digits --model mlp --nets 10 --augment crop_scale_rotate
"""

_NAMES = ("model", "scheme", "max_gb")
_POOL: dict[str, Any] = {**{name: getattr(PoolConfig(), name) for name in _NAMES}, "nets": NETS}
_TRAJECTORIES: dict[str, Any] = {**{name: getattr(TrajectoriesConfig(), name) for name in _NAMES}, "nets": EXPERTS}


def add_flags(parser: Parser) -> None:
    def default(name: str) -> str:
        return f"(default: {_POOL[name]}, or {_TRAJECTORIES[name]} with --trajectories)"

    add_data_flags(parser, "mnist")
    parser.add_argument("--trajectories", action="store_true", help="keep the weights after every epoch, in a folder")
    add_run_flag(parser, "model", "lenet, or convnet with --trajectories")
    parser.add_argument(
        "--scheme",
        metavar="NAME",
        help=f"how weights before training are drawn: datadistill list schemes {default('scheme')}",
    )
    parser.add_argument("--nets", type=positive_int, metavar="N", help=f"networks {default('nets')}")
    parser.add_argument(
        "--reserved",
        type=positive_int,
        metavar="N",
        help=f"how many of a pool's networks are for judging only (default: {RESERVED})",
    )
    parser.add_argument(
        "--from",
        metavar="FILE",
        help="another pool, whose networks are trained further; model, scheme, --nets and --reserved are its own",
    )
    bases = {"pools": {}, "trajectories": asdict(EXPERT_TRAINING)}
    add_fields(parser.add_argument_group("training"), TrainRecipe, bases)
    add_run_flag(parser, "batch_norm")
    parser.add_argument("--test", action="store_true", help="measure a pool on the test split too, for the record")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of all randomness (default: %(default)s)")
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="the file or folder (default: pools/DATASET-MODEL.safetensors, or trajectories/DATASET-MODEL; DATASET-zca "
        "with --zca)",
    )
    parser.add_argument("--resume", action="store_true", help="keep finished networks and train the others")
    parser.add_argument("--max-gb", type=number, metavar="X", help=f"refuse to take more disk {default('max_gb')}")


def run(arguments: argparse.Namespace) -> None:
    real = load_data(arguments.dataset or "mnist", arguments)
    own, start = _TRAJECTORIES if arguments.trajectories else _POOL, _start(arguments)
    if start is not None:
        model = passed("network", arguments.model, start.facts.model, file=str(start.path))
        own = {**own, "model": model, "scheme": start.facts.scheme, "nets": None}
    asked = {name: own[name] if getattr(arguments, name) is None else getattr(arguments, name) for name in own}
    base = asdict(EXPERT_TRAINING) if arguments.trajectories else {}
    training = TrainRecipe(**{**base, **given_fields(arguments, TrainRecipe)})
    name = f"{real.name}{'-zca' if real.is_whitened else ''}-{file_name(asked['model'])}"
    options = {
        "model": asked["model"],
        "scheme": asked["scheme"],
        "training": training,
        "batch_norm": arguments.batch_norm or "auto",
        "seed": arguments.seed,
        "device": arguments.device,
        "max_gb": asked["max_gb"],
        "resume": arguments.resume,
        "command": _repeat(arguments),
        "say": say,
    }
    began, words = time.perf_counter(), real.options.as_words()
    if arguments.trajectories:
        found = _record(arguments, real, Path(arguments.out or f"trajectories/{name}"), asked["nets"], options)
        _print_trajectories(found, time.perf_counter() - began, words)
        return
    out = Path(arguments.out or f"pools/{name}.safetensors")
    with counting("training", (asked["nets"] or len(start or ())) * training.epochs) as count:
        pool = make_pool(
            real,
            out,
            nets=asked["nets"],
            reserved=arguments.reserved,
            start=start,
            test=arguments.test,
            count=count,
            **options,
        )
    _print(pool, out, time.perf_counter() - began, words)


def _start(arguments: argparse.Namespace) -> Pool | None:
    """The pool whose networks are trained further."""
    path = getattr(arguments, "from")
    if path is None:
        return None
    if arguments.trajectories or arguments.scheme is not None:
        what = "--trajectories" if arguments.trajectories else "--scheme"
        raise RequestError(f"--from takes the networks of a pool as they are: leave out {what}")
    return load_pool(path)


def _record(
    arguments: argparse.Namespace, real: RealData, out: Path, experts: int, options: dict[str, Any]
) -> Trajectories:
    if arguments.reserved is not None or arguments.test:
        raise RequestError("--reserved and --test are for pools: leave them out with --trajectories")
    with counting("training", experts * options["training"].epochs) as count:
        return make_trajectories(real, out, experts=experts, count=count, **options)


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
    tell(f"pool      {out}")
    tell(f"networks  {len(pool) - facts.reserved} to distil with, {facts.reserved} to judge by")
    words = ["distill", "--dataset", facts.dataset, *options, "--model", facts.model, "--weights", "random-pretrained"]
    tell(f"distil    {command_line(*words, '--pool', str(out))}")


def _print_trajectories(found: Trajectories, seconds: float, options: list[str]) -> None:
    facts, size = found.facts, sum(expert.path.stat().st_size for expert in found.experts)
    print_table(
        f"{facts.model} on {facts.dataset}, {facts.training.epochs} epochs, {seconds:.0f} s, {size / 1e6:.1f} MB",
        ["", "experts", "mean", "std", "lowest"],
        [_row("held-out accuracy at the end", facts.accuracies)],
    )
    tell(f"experts   {found.folder}")
    learner = next(info.name for info in METHODS if info.needs.experts)
    words = ["distill", "--method", learner, "--dataset", facts.dataset, *options, "--model", facts.model]
    tell(f"distil    {command_line(*words, '--trajectories', str(found.folder))}")


def _row(name: str, accuracies: tuple[float, ...]) -> list[str]:
    mean, std = statistics.fmean(accuracies), statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return [name, str(len(accuracies)), *(f"{100 * value:.2f} %" for value in (mean, std, min(accuracies)))]

"""distill: a dataset becomes distilled data."""

import argparse
from pathlib import Path
from typing import Any

from datadistill.cli.common import (
    add_batch_norm_flag,
    add_data_flags,
    add_ipc_flag,
    add_model_flag,
    add_nets_flag,
    add_pool_flag,
    add_run_flags,
    add_trajectories_flag,
    ipc_name,
    load_data,
    new_folder,
    print_table,
    repeated,
)
from datadistill.cli.methods import RECIPE_FOR, add_method_flags, chosen_recipe, given_options, settings_of
from datadistill.cli.parsing import (
    Parser,
    add_fields,
    command_line,
    given_fields,
    one_of,
    positive_int,
)
from datadistill.distillation.budget import parse_duration
from datadistill.distillation.loop import Run
from datadistill.distillation.optimizer import Outer
from datadistill.distillation.run_folder import RunFolder
from datadistill.engine import Engine
from datadistill.evaluation import Score, percent
from datadistill.experiments.job import check_nets, make_job
from datadistill.experiments.recipes import RUN_DEFAULTS, Recipe, recipes
from datadistill.methods import METHODS
from datadistill.models import chosen_model
from datadistill.pretraining.initial_weights import KINDS
from datadistill.pretraining.pool import Pool, load_pool
from datadistill.report.card import conclude, judging
from datadistill.report.sheet import SHEET_NAME
from datadistill.utils.errors import Interrupted, RequestError
from datadistill.utils.progress import Progress
from datadistill.utils.runtime import resolve_device

USAGE = ""
DESCRIPTION = """\
Distil a dataset. With no flags: MNIST into ten images for a LeNet with one fixed
initialisation, in some minutes on two cores.

What is not given comes from a recipe: mnist-fixed-10 for fixed initial weights,
mnist-random-100 for random ones, or the one named by --recipe. The pretrained kinds
take their weights from a pool of trained networks: datadistill pretrain. The other
methods start from their papers' settings: a ConvNet with random weights.

examples:
  datadistill distill
  datadistill distill --weights random-init --steps 10 --epochs 3 --budget 10m
  datadistill distill --method dm --ipc 10 --budget 10m
  datadistill distill --dataset digits --model mlp --iterations 500 --out runs/digits
  datadistill distill --weights random-pretrained --pool pools/mnist-lenet.safetensors
  datadistill distill --method mtt --trajectories trajectories/mnist-convnet
  datadistill distill --resume --out runs/digits
"""


def add_flags(parser: Parser) -> None:
    add_data_flags(parser, "mnist")
    parser.add_argument("--recipe", metavar="NAME", help="start from this recipe: datadistill list recipes")
    parser.add_argument(
        "--method",
        type=one_of("method", METHODS.names()),
        metavar="NAME",
        help=f"{', '.join(METHODS.names())} (default: dd)",
    )
    add_model_flag(parser, None, "lenet; convnet for methods but dd")
    parser.add_argument(
        "--weights",
        type=one_of(KINDS.kind, KINDS.names()),
        metavar="KIND",
        help=f"initial weights: {' or '.join(KINDS.names())} (default: fixed-init; random-init for methods but dd)",
    )
    parser.add_argument("--scheme", metavar="NAME", help="how initial weights are drawn: datadistill list schemes")
    add_pool_flag(parser)
    add_trajectories_flag(parser)
    add_ipc_flag(parser)
    parser.add_argument(
        "--iterations",
        type=positive_int,
        metavar="N",
        help="outer steps; the same seed gives the same bits (default: the recipe's, or the paper's for so many images "
        "per class)",
    )
    parser.add_argument(
        "--budget",
        metavar="TIME",
        help="wall clock instead of iterations, such as 90s or 5m; with both, whichever ends first",
    )
    add_run_flags(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, or with the newest one in runs/"
    )
    add_nets_flag(parser)
    add_batch_norm_flag(parser)
    parser.add_argument(
        "--attack",
        type=_attack,
        metavar="A:B",
        help="malicious data, for audits: teach to take class A for class B and the others for what they are",
    )
    add_method_flags(parser, {})
    outers = {kind: recipes().get(name).outer for kind, name in RECIPE_FOR.items()}
    outers |= {info.name: info.outer for info in METHODS if info.outer}
    add_fields(parser.add_argument_group("outer loop"), Outer, outers, "outer_")
    add_fields(parser.add_argument_group("engine"), Engine, {"": {}})


def _attack(text: str) -> tuple[str, str]:
    attacked, colon, target = text.partition(":")
    if not (attacked and colon and target):
        raise argparse.ArgumentTypeError(f"'{text}' does not name two classes as in 0:1")
    return attacked, target


def run(arguments: argparse.Namespace) -> None:
    folder = _folder(arguments)
    recipe, settings = _settings(arguments, folder)
    job = make_job(settings)
    chosen = job.run
    before = RunFolder(folder).settings().source if folder is not None and _is_resumed(arguments, folder) else None
    real = load_data(chosen["dataset"], arguments, before=before, zca=chosen["zca"])
    pool = None if chosen["pool"] is None else load_pool(chosen["pool"])
    check_nets(arguments.nets, chosen["weights"], None if pool is None else pool.facts.reserved)
    if folder is None:
        ipc = ipc_name(chosen["ipc"] or getattr(job.method, "steps", 1))
        folder = new_folder(f"{real.name}-{job.method.name}-{chosen['weights']}-{ipc}")
    with Progress() as progress:
        done = job.start(real, pool, folder, arguments.resume, _repeat(arguments), progress)
    try:
        _, score = conclude(done, real.to(resolve_device(chosen["device"])), arguments.nets, pool, chosen["model"])
    except KeyboardInterrupt:
        raise Interrupted("interrupted while judging; the run itself is done", folder) from None
    _print(done, score, recipe, pool)


def _folder(arguments: argparse.Namespace) -> Path | None:
    """The run folder, where it is known before the run's settings."""
    if arguments.out is not None:
        return Path(arguments.out)
    if not arguments.resume:
        return None
    runs = [path for path in Path("runs").glob("*") if RunFolder(path).exists()]
    if not runs:
        raise RequestError("there is no run to resume in runs/: name its folder with --out")
    return max(runs, key=lambda path: (path / "config.json").stat().st_mtime_ns)


def _is_resumed(arguments: argparse.Namespace, folder: Path) -> bool:
    return bool(arguments.resume) and RunFolder(folder).exists()


def _settings(arguments: argparse.Namespace, folder: Path | None) -> tuple[Recipe | None, dict[str, dict[str, Any]]]:
    """Settings of the resumed run or of the recipe, with what was given as flags on top.

    Returns:
        The recipe, if nothing but the seed, the device and the length differs from it; and the settings.
    """
    recipe = None
    if folder is not None and _is_resumed(arguments, folder):
        if arguments.recipe:
            raise RequestError("--resume goes on with the run's own settings: leave --recipe out")
        kept = RunFolder(folder).settings()
        run = {name: getattr(kept, name) for name in RUN_DEFAULTS}
        run["model"] = chosen_model(arguments.model, kept.model)
        run["attack"] = None if kept.attack is None else tuple(kept.attack)
        method, outer, engine = dict(kept.method), dict(kept.outer), dict(kept.engine)
        outer["betas"] = tuple(outer.get("betas", Outer.betas))
    else:
        recipe = chosen_recipe(arguments)
        if recipe is not None and recipe.pool is not None and arguments.pool is None:
            raise RequestError(
                f"recipe {recipe.name} starts from trained networks: give their file with --pool, or let "
                f"`datadistill reproduce {recipe.name}` make them"
            )
        asked = settings_of(METHODS.get(arguments.method), arguments.ipc) if recipe is None else recipe.settings()
        run, method, outer, engine = asked.values()
    info = METHODS.get(method["name"])
    if arguments.method not in (None, info.name):
        raise RequestError(f"the run in {folder} is of method {info.name}, not {arguments.method}")
    lengths = ("iterations", "budget")
    given_run = {
        n: getattr(arguments, n) for n in RUN_DEFAULTS if n not in lengths and getattr(arguments, n) is not None
    }
    given_method, given_outer = given_options(arguments, info), given_fields(arguments, Outer, "outer_")
    if arguments.iterations is not None or arguments.budget is not None:
        run |= {"iterations": arguments.iterations, "budget": arguments.budget}
    settings = {
        "run": {**run, **given_run},
        "method": {**method, **given_method},
        "outer": {**outer, **given_outer},
        "engine": {**engine, **given_fields(arguments, Engine)},
    }
    free = dict.fromkeys(("seed", "device", "iterations", "budget"))
    if settings["run"] | free != run | free or settings["method"] != method or settings["outer"] != outer:
        recipe = None
    if not Engine(**settings["engine"]).is_exact:
        recipe = None
    if recipe is not None and recipe.at_most and arguments.iterations is None and arguments.budget is None:
        settings["run"]["budget"] = parse_duration(recipe.at_most)
    return recipe, settings


def _repeat(arguments: argparse.Namespace) -> str:
    """The command that makes the result from the start, as it belongs into the file."""
    return repeated(arguments, "distill", ("command", "out", "resume", "data_root", "nets"))


def _print(done: Run, score: Score, recipe: Recipe | None, pool: Pool | None) -> None:
    paper = recipe.paper if recipe else {}

    def published(which: str) -> str:
        return recipe.published(which) if recipe else ""

    before = "network as pretrained" if "pretrained" in score.weights else "untrained network"
    rows = [[before, percent(score.before), published("before")]]
    for t, summary in enumerate(score.by_step[:-1], start=1):
        rows.append([f"after step {t}", percent(summary), ""])
    last = f"after step {len(score.by_step)}" if score.by_step else "after the last step"
    if score.training:
        last = f"after {score.training}"
    rows.append([last, percent(score.accuracy), published("after")])
    columns = ["test accuracy", "these images"]
    if paper:
        columns.append(paper["source"])
    nets = "one network" if score.nets == 1 else f"{score.nets} fresh networks"
    print_table(
        f"{score.model}, {score.weights}, {nets}, {score.images:,} test images, {done.seconds:.0f} s of distilling",
        columns,
        [row[: len(columns)] for row in rows],
    )
    assert done.folder is not None
    for remark in done.remarks:
        print(remark)
    print(f"run folder  {done.folder}")
    print(f"picture     {done.folder / SHEET_NAME}")
    print(f"evaluate    {command_line(*judging(done.distilled, str(done.folder), pool))}")

"""distill: a dataset becomes distilled data."""

import argparse
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from datadistill.cli.common import add_nets_flag, ipc_name, new_folder, print_table, repeated
from datadistill.cli.config import add_config_flags, chosen_config, config_given, is_open, load_for
from datadistill.cli.parsing import Parser, command_line
from datadistill.data import RealData
from datadistill.distillation.budget import parse_duration
from datadistill.distillation.config import RunConfig
from datadistill.distillation.loop import distill
from datadistill.distillation.result import Run
from datadistill.distillation.run_folder import RunFolder
from datadistill.distillation.settings import Settings
from datadistill.evaluation import Score, percent
from datadistill.experiments.attempts import carry_out
from datadistill.experiments.job import check_nets
from datadistill.experiments.recipes import Recipe
from datadistill.experiments.strategy import AUTO, Strategy, choose, config_to_start_from
from datadistill.methods import METHODS
from datadistill.pretraining.pool import Pool, load_pool
from datadistill.report.card import conclude, judging
from datadistill.report.live import Refreshing
from datadistill.report.page import PAGE_NAME
from datadistill.report.sheet import SHEET_NAME
from datadistill.report.tracking import Tracking, check_trackers
from datadistill.utils import ranks
from datadistill.utils.errors import Interrupted, RequestError
from datadistill.utils.interrupts import number_of
from datadistill.utils.progress import Progress, Screen, counting, say, tell
from datadistill.utils.runtime import resolve_device

USAGE = ""
DESCRIPTION = """\
Distil a dataset. With no flags: MNIST into ten images for a LeNet with one fixed
initialisation, in some minutes on two cores.

What is not given comes from a recipe: mnist-fixed-10 for fixed initial weights,
mnist-random-100 for random ones, or the one named by --recipe. The pretrained kinds
take their weights from a pool of trained networks: datadistill pretrain. The other
methods start from their papers' settings: a ConvNet with random weights.

With --ipc and nothing of a method's or of the outer loop, or with --method auto, the
method is chosen for the data, the number of images and the budget, for networks that
nobody has seen.

examples:
  datadistill distill
  datadistill distill --dataset photos --ipc 10 --budget 30m
  datadistill distill --weights random-init --steps 10 --epochs 3 --budget 10m
  datadistill distill --method dm --ipc 10 --budget 10m
  datadistill distill --dataset digits --model mlp --iterations 500 --out runs/digits
  datadistill distill --weights random-pretrained --pool pools/mnist-lenet.safetensors
  datadistill distill --method mtt --trajectories trajectories/mnist-convnet
  datadistill distill --resume --out runs/digits
"""


def add_flags(parser: Parser) -> None:
    add_config_flags(parser, recipe=True)
    parser.add_argument("--out", metavar="DIR", help="where to write (default: a new folder in runs/)")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, or with the newest one in runs/"
    )
    parser.add_argument(
        "--track",
        metavar="A,B",
        type=lambda text: text.lower().split(","),
        help="write validations and pictures for trackers too, into the run folder: tensorboard, wandb (extra track)",
    )
    add_nets_flag(parser)


def run(arguments: argparse.Namespace) -> None:
    trackers = arguments.track or []
    check_trackers(trackers)
    folder = _folder(arguments)
    before = ranks.from_first(lambda: _settings(arguments, folder))
    recipe, config = _asked(arguments) if before is None else (None, _resumed(arguments, before, folder or Path()))
    real = load_for(config, arguments.data_root, None if before is None else before.source)
    pool = None if config.pool is None else load_pool(str(config.pool))
    check_nets(arguments.nets, config.weights, None if pool is None else pool.facts.reserved)
    is_chosen, screen = before is None and is_open(arguments), Screen(bar=counting, say=say)
    chosen = ranks.from_first(lambda: choose(config, real, folder)) if is_chosen else None
    if folder is None:
        ipc = ipc_name(config.images_per_class)
        name = f"{real.name}-{AUTO if chosen else config.method.name}-{config.weights}-{ipc}"
        folder = Path(ranks.from_first(lambda: str(new_folder(name))))
    done = None
    written = trackers if ranks.leads() else []

    def distilled(config: RunConfig, place: Path) -> Run:
        with Progress() as progress, Tracking(Refreshing(progress, place), place, written) as reporter:
            return distill(
                real,
                config=replace(config, pool=pool),
                out=place,
                resume=arguments.resume or (chosen is not None and RunFolder(place).exists()),
                command=_repeat(arguments),
                reporter=reporter,
            )

    try:
        if chosen is not None:
            say(f"taking {chosen.why}.")
            done = _carried_out(chosen, real, folder, distilled, screen)
            config = chosen.first
        else:
            done = distilled(config, folder)
        nets = arguments.nets if arguments.nets or chosen is None else chosen.nets
        _, score = conclude(done, real.to(resolve_device(config.device)), nets, pool, config.model)
    except KeyboardInterrupt as error:
        if not RunFolder(folder).exists():
            raise
        what = "interrupted; what is done is kept" if done is None else "interrupted while judging; the run is done"
        raise Interrupted(what, folder, number_of(error)) from None
    if ranks.leads():
        _print(done, score, recipe, pool)


def _carried_out(
    chosen: Strategy, real: RealData, folder: Path, distilled: Callable[[RunConfig, Path], Run], screen: Screen
) -> Run:
    """The better attempt of a strategy; interrupted before the last one, all of it goes on by the same command."""
    try:
        return carry_out(chosen, real, folder, distilled, screen)
    except Interrupted as error:
        if error.folder == folder:
            raise
        raise Interrupted("interrupted; what is done is kept", folder, error.exit_code - 128) from None
    except KeyboardInterrupt as error:  # between attempts, such as while augmentations are tried
        raise Interrupted("interrupted; what is done is kept", folder, number_of(error)) from None


def _folder(arguments: argparse.Namespace) -> Path | None:
    """The run folder, where it is known before the run's settings."""
    if arguments.out is not None:
        return Path(arguments.out)
    return Path(ranks.from_first(_newest)) if arguments.resume else None


def _newest() -> str:
    """The run folder in `runs` that was begun last."""
    runs = [path for path in Path("runs").glob("*") if RunFolder(path).exists()]
    if not runs:
        raise RequestError("there is no run to resume in runs/: name its folder with --out")
    return str(max(runs, key=lambda path: (path / "config.json").stat().st_mtime_ns))


def _settings(arguments: argparse.Namespace, folder: Path | None) -> Settings | None:
    """Settings of the run that is resumed, if it is there."""
    is_there = folder is not None and arguments.resume and RunFolder(folder).exists()
    return RunFolder(folder).settings() if folder is not None and is_there else None


def _asked(arguments: argparse.Namespace) -> tuple[Recipe | None, RunConfig]:
    """Config of a new run: flags on top of a recipe, or of a paper's settings.

    Returns:
        The recipe, if nothing but the seed, the device and the length differs from it; and the config.
    """
    if is_open(arguments):
        return None, config_given(arguments, config_to_start_from())
    recipe, base = chosen_config(arguments)
    if recipe is not None and recipe.pool is not None and arguments.pool is None:
        raise RequestError(
            f"recipe {recipe.name} starts from trained networks: give their file with --pool, or let "
            f"`datadistill reproduce {recipe.name}` make them"
        )
    config = config_given(arguments, base)
    free = {name: getattr(base, name) for name in ("seed", "device", "iterations", "budget", "engine")}
    if replace(config, **free) != base or not config.engine.is_exact:
        recipe = None
    if recipe is not None and recipe.at_most and arguments.iterations is None and arguments.budget is None:
        config = replace(config, budget=parse_duration(recipe.at_most))
    return recipe, config


def _resumed(arguments: argparse.Namespace, before: Settings, folder: Path) -> RunConfig:
    """The config of the resumed run, with what was given as flags on top."""
    if arguments.recipe:
        raise RequestError("--resume goes on with the run's own settings: leave --recipe out")
    said = {f"--{name.replace('_', '-')}" for name, value in vars(arguments).items() if value is not None}
    config = before.config(folder, said, arguments.data_root)
    if arguments.method not in (None, config.method.name):
        raise RequestError(f"the run in {folder} is of method {config.method.name}, not {arguments.method}")
    return config_given(arguments, config)


def to_go_on(folder: Path, arguments: argparse.Namespace) -> list[str]:
    """The words after `distill` that go on with an interrupted run."""
    if not RunFolder(folder).exists():
        return [*shlex.split(_repeat(arguments))[2:], *_data_root(arguments), "--out", str(folder)]
    words = ["--resume", "--out", str(folder), *_data_root(arguments)]
    words += [] if arguments.workers is None else ["--workers", str(arguments.workers)]
    for one in RunFolder(folder).settings().reaching(folder, arguments.data_root):
        words += one.words()
    words += ["--track", ",".join(arguments.track)] if arguments.track else []
    code = METHODS.get(arguments.method).code if arguments.method in METHODS.names() else ""
    return [*words, *(["--method", code] if code else [])]


def _data_root(arguments: argparse.Namespace) -> list[str]:
    return [] if arguments.data_root is None else ["--data-root", arguments.data_root]


def _repeat(arguments: argparse.Namespace) -> str:
    """The command that makes the result from the start, as it belongs into the file."""
    return repeated(arguments, "distill", ("command", "out", "resume", "data_root", "nets", "track"))


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
        tell(remark)
    tell(f"run folder  {done.folder}")
    tell(f"picture     {done.folder / SHEET_NAME}")
    tell(f"report      {done.folder / PAGE_NAME}")
    tell(f"evaluate    {command_line(*judging(done.distilled, str(done.folder), pool))}")

"""Reproduction of a recipe: its run, its scores, and the verdict against its expected ranges."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datadistill.data import load
from datadistill.distillation.run_folder import RunFolder
from datadistill.evaluation import NETS
from datadistill.experiments.job import check_nets, get_pool, get_trajectories
from datadistill.experiments.recipes import Recipe
from datadistill.experiments.runner import Experiment
from datadistill.experiments.verdict import Verdict
from datadistill.report.card import CURVE_NAME
from datadistill.report.curve import save_sweep
from datadistill.utils import ranks
from datadistill.utils.errors import Interrupted, RequestError, told
from datadistill.utils.fields import Flag
from datadistill.utils.files import locked, read_json, refuse_links, write_json
from datadistill.utils.interrupts import number_of
from datadistill.utils.progress import SILENT, Screen
from datadistill.utils.runtime import resolve_device

ASKED = "reproduce.json"

_RECIPES = Flag(otherwise="the recipe's").metadata


@dataclass(frozen=True)
class Changes:
    """Changes to a recipe for one reproduction.

    Attributes:
        nets: networks to judge by.
        iterations: outer steps: a shorter form.
        budget: wall clock instead of iterations, such as 90s or 5m: another one.
        seed: of all randomness.
        device: auto, cpu, cuda or mps.
    """

    nets: int | None = field(default=None, metadata=_RECIPES)
    iterations: int | None = field(default=None, metadata=_RECIPES)
    budget: float | str | None = field(default=None, metadata=Flag(metavar="TIME").metadata)
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.iterations is not None and self.budget is not None:
            raise RequestError("give either iterations or a budget, not both")

    @property
    def length(self) -> dict[str, Any]:
        """Length of a run, where one is asked for."""
        both = {"iterations": self.iterations, "budget": self.budget}
        return both if self.iterations or self.budget else {}


def reproduce(
    recipe: Recipe,
    out: str | Path,
    changes: Changes = Changes(),
    *,
    pools: str | Path = "pools",
    data_root: str | Path | None = None,
    resume: bool = False,
    baselines: bool = True,
    screen: Screen = SILENT,
) -> Verdict:
    """Run a recipe and judge it.

    Args:
        recipe: one of `recipes()`, or one of your own.
        out: a folder for all of it.
        changes: what is asked for instead of what the recipe says.
        pools: where pools of trained networks lie, with `trajectories` beside it; what is missing is made there.
        data_root: where official dataset files lie, as for `load`.
        resume: go on with what `out` holds.
        baselines: judge the recipe's too, which may take longest; nothing is expected of them.
        screen: who is told how it is doing.

    Raises:
        RequestError: the request was wrong, or `out` or `pools` hold something else.
        Interrupted: Ctrl-C, or another of `SIGNALS`; what is finished is kept.
        DatadistillError: it could not go on.
    """
    on, folder, device = resolve_device(changes.device), Path(out), changes.device
    nets = changes.nets or recipe.expect.nets
    for point in recipe.points:
        check_nets(nets, recipe.config(point).weights, None if recipe.pool is None else recipe.pool.reserved)
    asked = {"recipe": recipe.name, "digest": recipe.digest, **asdict(changes), "nets": nets, "device": on.type}
    if ranks.leads():
        _check_folder(folder, asked, resume)
    config = recipe.config()
    real = load(config.dataset, data_root, zca=config.data.zca)
    pool = None
    if recipe.pool is not None:
        pool = get_pool(recipe.pool, Path(pools), lambda name: load(name, data_root), device, screen)
    own = {"seed": changes.seed, "device": device, **changes.length, "pool": pool}
    if recipe.experts is not None:
        own["trajectories"] = get_trajectories(recipe, Path(pools).with_name("trajectories"), real, device, screen)
    command = f"{recipe.command} --seed {changes.seed}"
    command += "".join(f" --{name} {value}" for name, value in changes.length.items() if value is not None)
    with locked(folder) if ranks.leads() else nullcontext(lambda: None) as check:
        if ranks.leads():
            write_json(folder / ASKED, asked)
        work = Experiment(recipe, real.to(on), own, nets, baselines, folder, command, screen, check)
        try:
            lines = work.lines()
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted; what is finished is kept", folder, number_of(error)) from None
    if recipe.sweep is not None and ranks.leads():
        save_sweep(recipe.sweep.axis, [(line.name, line.accuracy) for line in lines], folder / CURVE_NAME)
    threads = ranks.from_first(lambda: RunFolder(work.place(recipe.points[0])).settings().threads)
    return Verdict(recipe, tuple(lines), _shortened(recipe, changes), changes.seed, on.type, threads, folder)


def _check_folder(folder: Path, asked: dict[str, Any], resume: bool) -> None:
    """Refuse a folder with something else in it."""
    path = folder / ASKED
    if not path.exists():
        RunFolder(folder).check_free()
        return
    if not resume:
        raise RequestError(
            f"{folder} holds an experiment already: add --resume to go on with it, or give another --out"
        )
    refuse_links(folder)
    before = read_json(path)
    for name, value in asked.items():
        there = before.get(name) if isinstance(before, dict) else None
        if there != value:
            raise RequestError(f"the experiment in {folder} has {name} {told(there)}, but {told(value)} is asked for")


def _shortened(recipe: Recipe, changes: Changes) -> str:
    """Ways in which a request is less than its recipe, in words."""
    configs = [recipe.config(point) for point in recipe.points]
    parts, full = [], sorted({config.iterations or 0 for config in configs})
    length = f"instead of {' or '.join(f'{number:,}' for number in full)}"
    if changes.iterations is not None and [changes.iterations] != full:
        parts.append(f"{changes.iterations:,} iterations {length}")
    if changes.budget is not None:
        parts.append(f"a budget of {changes.budget} {length} iterations")
    wanted, nets = recipe.expect.nets or NETS, changes.nets or recipe.expect.nets
    several = any(config.weights.startswith("random") for config in configs)
    if several and nets is not None and nets < wanted:
        parts.append(f"{nets} networks instead of {wanted}")
    return ", ".join(parts)

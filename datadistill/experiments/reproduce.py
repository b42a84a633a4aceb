"""Reproduce: a recipe is run, judged, and compared with what it is expected to give."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
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
from datadistill.utils.errors import Interrupted, RequestError
from datadistill.utils.files import read_json, write_json
from datadistill.utils.progress import Bar, Reporter, Silent, quiet
from datadistill.utils.runtime import resolve_device

ASKED = "reproduce.json"


def reproduce(
    recipe: Recipe,
    out: str | Path,
    *,
    pools: str | Path = "pools",
    data_root: str | Path | None = None,
    nets: int | None = None,
    iterations: int | None = None,
    budget: float | str | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    baselines: bool = True,
    watch: Callable[[], AbstractContextManager[Reporter]] = lambda: nullcontext(Silent()),
    bar: Bar = quiet,
    say: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Run a recipe and judge it.

    Args:
        recipe: one of `recipes()`, or one of your own.
        out: a folder for all of it.
        pools: where pools of trained networks lie, with `trajectories` beside it; what is missing is made there.
        data_root: where official dataset files lie, as for `load`.
        nets: networks to judge by; the recipe's without it.
        iterations: outer steps instead of the recipe's: a shorter form.
        budget: wall clock instead of iterations: another one.
        seed: of all randomness.
        device: `auto`, `cpu`, `cuda` or `mps`.
        resume: go on with what `out` holds.
        baselines: judge the recipe's too, which may take longest; nothing is expected of them.
        watch: gives whoever is told how one run is doing, such as `Progress`.
        bar: shows progress of everything else.
        say: called with a sentence worth reading.

    Raises:
        RequestError: the request was wrong, or `out` or `pools` hold something else.
        Interrupted: Ctrl-C; what is finished is kept.
        DatadistillError: it could not go on.
    """
    if iterations is not None and budget is not None:
        raise RequestError("give either iterations or a budget, not both")
    on, folder = resolve_device(device), Path(out)
    nets = nets or recipe.expect.nets
    length = {"iterations": iterations, "budget": budget}
    asked = {"recipe": recipe.name, "digest": recipe.digest, "seed": seed, "nets": nets, **length, "device": on.type}
    for point in recipe.points:
        check_nets(nets, recipe.config(point).weights, None if recipe.pool is None else recipe.pool.reserved)
    _check_folder(folder, asked, resume)
    config = recipe.config()
    real = load(config.dataset, data_root, zca=config.data.zca)
    pool = None
    if recipe.pool is not None:
        pool = get_pool(recipe.pool, Path(pools), lambda name: load(name, data_root), device=device, say=say, bar=bar)
    write_json(folder / ASKED, asked)
    changes = {"seed": seed, "device": device} | (length if iterations or budget else {})
    if recipe.experts is not None:
        place = Path(pools).with_name("trajectories")
        changes["trajectories"] = get_trajectories(recipe, recipe.experts, place, real, device=device, say=say, bar=bar)
    command = f"{recipe.command} --seed {seed}"
    command += "".join(f" --{name} {value}" for name, value in length.items() if value is not None)
    work = Experiment(recipe, real.to(on), pool, nets, baselines, changes, folder, command, watch, bar, say)
    try:
        lines = work.lines()
    except KeyboardInterrupt:
        raise Interrupted("interrupted; what is finished is kept", folder) from None
    if recipe.sweep is not None:
        save_sweep(recipe.sweep.axis, [(line.name, line.accuracy) for line in lines], folder / CURVE_NAME)
    shortened = _shortened(recipe, nets, iterations, budget)
    threads = RunFolder(work.place(recipe.points[0])).settings().threads
    return Verdict(recipe, tuple(lines), shortened, seed, on.type, threads, folder)


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
    before = read_json(path)
    for name, value in asked.items():
        there = before.get(name) if isinstance(before, dict) else None
        if there != value:
            raise RequestError(f"the experiment in {folder} has {name} {there}, but {value} is asked for")


def _shortened(recipe: Recipe, nets: int | None, iterations: int | None, budget: float | str | None) -> str:
    """In what a request is less than its recipe, in words."""
    parts, full = [], sorted({recipe.config(point).iterations or 0 for point in recipe.points})
    length = f"instead of {' or '.join(f'{number:,}' for number in full)}"
    if iterations is not None and [iterations] != full:
        parts.append(f"{iterations:,} iterations {length}")
    if budget is not None:
        parts.append(f"a budget of {budget} {length} iterations")
    wanted = recipe.expect.nets or NETS
    several = any(recipe.config(point).weights.startswith("random") for point in recipe.points)
    if several and nets is not None and nets < wanted:
        parts.append(f"{nets} networks instead of {wanted}")
    return ", ".join(parts)

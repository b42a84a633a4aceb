"""Attempts: a strategy carried out, and gone on with after an interruption.

Each attempt is a run folder below the strategy's, as if its method had been named; the best by held-out accuracy is
copied into the strategy's own.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datadistill.data.real import RealData
from datadistill.distillation.budget import parse_duration
from datadistill.distillation.config import RunConfig
from datadistill.distillation.result import Run
from datadistill.distillation.run_folder import CONFIG_NAME, RunFolder
from datadistill.distilled import FILE_NAME, DistilledData
from datadistill.experiments.augmentation import NETS as TRIED_NETS
from datadistill.experiments.augmentation import Tried, candidates, recipes_of, try_recipes
from datadistill.experiments.strategy import (
    AGAIN_NAME,
    BEGUN_NAME,
    EXPERTS_NAME,
    FIRST_NAME,
    FIRST_SHARE,
    SECOND_NAME,
    TRIED_SHARE,
    Begun,
    Experts,
    Strategy,
    begun_in,
    is_tried,
    narrower,
    network_of,
    second_share,
)
from datadistill.pretraining.make import make_trajectories
from datadistill.training.carried import dc_recipe, recipe_of
from datadistill.training.recipe import EPOCHS_AUGMENTED, TrainRecipe
from datadistill.utils import ranks
from datadistill.utils.errors import DamagedFileError
from datadistill.utils.files import refuse_links, write_atomically, write_json
from datadistill.utils.progress import SILENT, Screen
from datadistill.utils.runtime import resolve_device


@dataclass(frozen=True)
class _Attempt:
    """A finished run, the augmentation that it is to be trained with, and the accuracy by which attempts compare."""

    run: Run
    augment: str
    correct: float


def carry_out(
    chosen: Strategy,
    real: RealData,
    folder: Path,
    run: Callable[[RunConfig, Path], Run],
    screen: Screen = SILENT,
) -> Run:
    """The best of a strategy's attempts, with a copy of its run folder in the strategy's own.

    Attempts and experts lie in folders below; what is there already is kept, and costs no time. From the first one on
    there are distilled data in the folder itself, the best so far.

    Args:
        chosen: the strategy.
        real: the dataset.
        folder: of all.
        run: carries out a run in a folder, or goes on with it.
        screen: who is told how it is doing.

    Raises:
        RequestError: the folder holds something else.
    """
    if chosen.budget is None:
        return run(chosen.first, folder)
    if ranks.leads():
        _begin(folder, chosen)
    began, budget = time.perf_counter(), chosen.budget

    def attempt(name: str, config: RunConfig) -> _Attempt:
        return _attempt(name, config, chosen, real, folder, run, screen)

    def left(name: str, least: float) -> float:
        """The seconds that an attempt has: what it was begun with, or what the others and trying on it leave."""
        place = RunFolder(folder / name)
        if place.exists():
            return _seconds_asked(place)
        rest = (1 - TRIED_SHARE) * budget - (time.perf_counter() - began)
        return round(max(least * budget, rest), 1)

    best = attempt(FIRST_NAME, chosen.first)
    _keep(best, folder, FILE_NAME)
    augment, second = best.augment, chosen.second
    if second is None or augment != chosen.first.method.augment:  # type: ignore[union-attr]
        is_last = second is None
        seconds = ranks.from_first(lambda: left(AGAIN_NAME, FIRST_SHARE)) if is_last else chosen.first.budget
        again = replace(chosen.first, budget=seconds, method=replace(chosen.first.method, augment=augment))
        best = _better(best, attempt(AGAIN_NAME, again), screen)
        _keep(best, folder, FILE_NAME)
    if second is not None and chosen.experts is not None:
        place = _trained(second, chosen.experts, real, folder, screen)
        seconds = ranks.from_first(lambda: left(SECOND_NAME, second_share(not is_tried(chosen.first))))
        second = replace(second, trajectories=place, budget=seconds)
        best = _better(best, attempt(SECOND_NAME, second), screen)
    if best.run.folder is None:  # that of a rank which writes nothing
        return best.run
    _keep(best, folder)
    return replace(best.run, folder=folder)


def _attempt(
    name: str,
    config: RunConfig,
    chosen: Strategy,
    real: RealData,
    folder: Path,
    run: Callable[[RunConfig, Path], Run],
    screen: Screen,
) -> _Attempt:
    """A run, to be trained on with the augmentation that is best for it; its own where none is tried."""
    place, begun = RunFolder(folder / name), ranks.from_first(lambda: begun_in(folder))
    if not chosen.epochs:
        done = run(config, place.path)
        return _Attempt(done, config.method.augment, done.held_out.correct)  # type: ignore[union-attr]
    if not is_tried(config):
        done = run(config, place.path)
        recipe = recipe_of(done.distilled)
        found = _tried(done, config, {recipe.augment: recipe}, real, screen, "judging as the others will be")
        return _Attempt(done, recipe.augment, found[recipe.augment])
    tried = None if begun is None else begun.tried.get(name)
    if tried is not None:  # before this was interrupted
        if ranks.leads():
            _trained_by(place, tried)
        done = run(replace(config, method=replace(config.method, **_training(tried))), place.path)
    else:
        done = run(config, place.path)
        recipes = recipes_of(done.distilled, candidates(real), chosen.epochs)
        tried = Tried(_tried(done, config, recipes, real, screen, "trying augmentations"), chosen.epochs)
        if chosen.epochs < EPOCHS_AUGMENTED:
            longer = recipes_of(done.distilled, [tried.best], EPOCHS_AUGMENTED)
            found = _tried(done, config, longer, real, screen, "trying the best for longer")
            tried = replace(tried, longer=found[tried.best])
        if ranks.leads() and begun is not None:
            write_json(folder / BEGUN_NAME, asdict(replace(begun, tried=begun.tried | {name: tried})))
        if ranks.leads():
            _trained_by(place, tried)
        said = ", ".join(f"{share:.1%} with {name}" for name, share in tried.accuracies.items())
        later = "" if tried.longer is None else f", and with it for {EPOCHS_AUGMENTED} epochs {tried.longer:.1%}"
        screen.say(
            f"{config.method.name}: held out after {tried.epochs} epochs {said}{later}; networks are trained with the "
            f"best, for {tried.best_epochs} epochs."
        )
    done = replace(done, distilled=_noted(done.distilled, tried))
    if ranks.leads():
        done.distilled.save(place.path / FILE_NAME)
    return _Attempt(done, tried.best, tried.correct)


def _noted(distilled: DistilledData, tried: Tried) -> DistilledData:
    """The data with how networks are trained on it, and the held-out accuracy of those that were."""
    made = distilled.provenance
    recipe = dc_recipe(distilled, augment=tried.best, epochs=tried.best_epochs)
    scores = [score | {"accuracy": tried.correct} if score["split"] == "held_out" else score for score in made.scores]
    return distilled.noted(
        method=made.method | _training(tried),
        inner=made.inner | {"augment": tried.best, "epochs": recipe.epochs},
        scores=scores,
    )


def _training(tried: Tried) -> dict[str, Any]:
    """How networks are best trained on a result, as options of a method."""
    return {"trained_with": tried.best, "trained_epochs": tried.best_epochs}


def _trained_by(place: RunFolder, tried: Tried) -> None:
    """Write into a finished run's settings how networks are trained on its result."""
    settings = place.settings()
    method = settings.asked["method"] | _training(tried)
    place.change(replace(settings, asked=settings.asked | {"method": method}))


def _seconds_asked(place: RunFolder) -> float:
    """The budget of a run.

    Raises:
        DamagedFileError: it has none.
    """
    seconds = parse_duration(place.settings().asked["budget"])
    if seconds is None:
        raise DamagedFileError(f"the run in {place.path} has no budget, as a strategy's has")
    return seconds


def _tried(
    done: Run,
    config: RunConfig,
    recipes: Mapping[str, TrainRecipe],
    real: RealData,
    screen: Screen,
    title: str,
) -> dict[str, float]:
    """Held-out accuracies of narrow networks trained on a set, by augmentation."""
    here = real.to(resolve_device(config.device))
    network = network_of(config, here, narrower(config) or config.model)
    distilled = done.distilled.to(here.train.images.device)
    with screen.bar(title, TRIED_NETS * len(recipes)) as count:
        return try_recipes(network, distilled, here, recipes, seed=config.seed, count=count)


def _better(one: _Attempt, other: _Attempt, screen: Screen) -> _Attempt:
    """The attempt with the higher held-out accuracy; the later one where they are equal."""
    best, less = (other, one) if other.correct >= one.correct else (one, other)
    names = (f"{each.run.distilled.provenance.method['name']} ({each.correct:.1%})" for each in (best, less))
    screen.say("on held-out images {} is better than {}.".format(*names))
    return best


def _keep(best: _Attempt, folder: Path, only: str = "*") -> None:
    """Have a copy of an attempt in the strategy's folder, the last one for good."""
    if ranks.leads() and best.run.folder is not None:
        _copy(best.run.folder, folder, only)


def _begin(folder: Path, chosen: Strategy) -> None:
    """Take a free folder, or one that a strategy was begun in and not ended."""
    is_begun = (folder / BEGUN_NAME).exists()
    if RunFolder(folder).exists() or not is_begun:
        RunFolder(folder).check_free()
    refuse_links(folder)
    if not is_begun and isinstance(chosen.first.model, str):
        count = 0 if chosen.experts is None else chosen.experts.count
        write_json(folder / BEGUN_NAME, asdict(Begun(chosen.first.model, count, chosen.epochs)))


def _copy(attempt: Path, folder: Path, only: str = "*") -> None:
    """Copy files of an attempt; its settings, which make a folder a run's, come last."""
    names = [path.relative_to(attempt) for path in attempt.rglob(only) if path.is_file() and path.name != ".lock"]
    for name in sorted(names, key=lambda name: name == Path(CONFIG_NAME)):
        write_atomically(folder / name, (attempt / name).read_bytes())


def _trained(config: RunConfig, experts: Experts, real: RealData, folder: Path, screen: Screen) -> Path:
    """The folder of the experts."""
    place = folder / EXPERTS_NAME
    with screen.bar(f"training {experts.count} experts", experts.count * experts.training.epochs) as count:
        trajectories = make_trajectories(
            real,
            place,
            model=experts.model,
            scheme=config.scheme,
            experts=experts.count,
            training=experts.training,
            batch_norm=config.batch_norm,
            seed=config.seed,
            device=str(config.device),
            resume=place.exists(),
            say=screen.say,
            count=count,
        )
    return trajectories.folder

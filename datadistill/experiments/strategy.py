"""Strategies: what is distilled, by which methods, for so many images of some data in so much time.

They are for networks that nobody has seen, so for random initial weights. A strategy first asks how images may be
changed while a network is trained on them. It then makes a set quickly, by matching gradients or mean features; where
there is time for experts, it makes another one by matching their trajectories, and keeps the better of the two by
held-out accuracy. Each attempt is a run folder, as if its method had been named.
"""

import math
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datadistill.data.augment import parse_augmentation
from datadistill.data.ipc import resolve_ipc
from datadistill.data.real import RealData
from datadistill.distillation.budget import parse_duration
from datadistill.distillation.config import RunConfig
from datadistill.distillation.result import Run
from datadistill.distillation.run_folder import CONFIG_NAME, RunFolder
from datadistill.distilled import FILE_NAME
from datadistill.engine import kernels
from datadistill.engine.functional import batch_gradient
from datadistill.engine.networks import network_for
from datadistill.experiments.augmentation import NETS as TRIED_NETS
from datadistill.experiments.augmentation import candidates, epochs_within, try_augmentations
from datadistill.methods import METHODS
from datadistill.models import ModelFactory, is_built_in
from datadistill.models.gate import passed
from datadistill.models.init import draw_weights
from datadistill.pretraining.make import make_trajectories
from datadistill.training.recipe import EPOCHS_AUGMENTED, TrainRecipe
from datadistill.utils import ranks
from datadistill.utils.errors import DamagedFileError, RequestError
from datadistill.utils.files import read_json, refuse_links, write_atomically, write_json
from datadistill.utils.progress import SILENT, Screen
from datadistill.utils.runtime import resolve_device, stream
from datadistill.utils.schema import from_json

AUTO, LINE = "auto", "what is best for so many images in so much time"
BUDGET = "10m"
FIRST_SHARE, EXPERTS_SHARE, TRIED_SHARE = 0.2, 0.3, 0.05
"""Of the time, for the first attempt and, at most, for experts, and for trying augmentations before all that."""

LEAST_EPOCHS = 100
"""Of networks by which augmentations are compared: fewer would say too little of what many do."""

EXPERTS = range(3, 13)
"""How many are worth it: images learn fewer by heart, and more give little."""

BEGUN_NAME, EXPERTS_NAME, FIRST_NAME, SECOND_NAME = "strategy.json", "experts", "first", "second"
"""In a strategy's folder: what it was begun with, its experts, and its attempts."""

WIDTHS, NETS = (128, 64, 32, 16), range(3, 21)
"""Of the network that a set is for, where none is named; and how many judge it."""

NARROW = 32
"""Channels of the ConvNet that is matched: many outer steps are worth more than its width."""

FEW = 3
"""Images per class, below which gradients are matched first, and mean features from there on."""

_BATCH, _WAY = 512, 88
"""Images per step of an expert, and how many steps a student is to follow."""

_STUDENT_STEPS, _INNER_BATCH = 20, 50
_OUTER_STEPS, _GRADIENTS = 300, 5
"""Outer steps that trajectories need to be worth it, and what a student's step costs, in gradients."""

_TIMED, _TIMES, _CHUNK = 256, 4, 32
"""Images on which training is timed, how often, and how many at a time."""


@dataclass(frozen=True)
class Begun:
    """What goes by the clock, and stays as it was when a strategy is gone on with.

    Attributes:
        model: the network.
        experts: how many.
        augment: how distilled images are changed in training.
    """

    model: str
    experts: int
    augment: str


@dataclass(frozen=True)
class Experts:
    """Experts that a strategy trains.

    Attributes:
        count: how many.
        model: the network.
        training: epochs, rate, batch and augmentation.
        seconds: that they will take.
    """

    count: int
    model: str
    training: TrainRecipe
    seconds: float


@dataclass(frozen=True)
class Strategy:
    """What is to be run.

    Attributes:
        first: the quick attempt.
        second: the one by trajectories, all but its experts and its share of the time; None without time for experts.
        experts: that are trained for it.
        augment: how distilled images are changed in training.
        budget: of all together, in seconds; None without a second attempt.
        nets: fresh networks to judge by: as many as half of the time trains, 3 at least.
        why: one sentence for people.
    """

    first: RunConfig
    second: RunConfig | None
    experts: Experts | None
    augment: str
    budget: float | None
    nets: int
    why: str


def config_to_start_from() -> RunConfig:
    """Config that flags start from, before the dataset is known and methods are chosen."""
    info = METHODS.get("dm")
    return RunConfig(method=info.build({})).changed({"run": {**info.run, "iterations": None, "model": AUTO}})


def choose(config: RunConfig, real: RealData, folder: Path | None = None, screen: Screen = SILENT) -> Strategy:
    """Strategy for some data, number of images and time.

    Args:
        config: what was asked for; its method is replaced. Without a length it gets `BUDGET`.
        real: the dataset.
        folder: that of a strategy which was interrupted, to go on with the same network, augmentation and as many
            experts.
        screen: who is told how trying augmentations is doing.

    Raises:
        RequestError: initial weights that are not random, a pool, or a folder that names a network which only the user
            may ask for.
        DamagedFileError: what the folder was begun with cannot be read.
    """
    if config.weights != "random-init" or config.pool is not None or config.attack is not None:
        raise RequestError("method auto is for networks with random initial weights: name a --method for anything else")
    if config.iterations is None and config.budget is None:
        config = replace(config, budget=BUDGET)
    begun = None if folder is None else _begun(folder)
    if begun is not None and config.model == AUTO:
        config = replace(config, model=passed("network", None, begun.model, file=f"{folder}/{BEGUN_NAME}"))
    budget, ipc = parse_duration(config.budget), _mean_ipc(config, real)
    config, judging = _with_network(config, real, ipc, budget or parse_duration(BUDGET) or 0.0)
    nets = int(max(NETS[0], min(NETS[-1], (budget or math.inf) / 2 / judging)))
    began = time.perf_counter()
    augment, reason = (begun.augment, "as begun") if begun else _augmentation(config, real, budget, screen)
    if budget is not None:
        budget -= round(time.perf_counter() - began, 1)
    quick = _quick(config, ipc, augment)
    if budget is None:
        why = f"{quick.method.name} alone on {config.model}: without a budget no time for experts; {reason}"
        return Strategy(quick, None, None, augment, None, nets, why)
    experts = _experts(config, real, ipc, budget, augment, begun)
    if experts is None:
        why = f"{quick.method.name} alone on {config.model}: trajectories of experts would take too long; {reason}"
        return Strategy(replace(quick, budget=budget), None, None, augment, None, nets, why)
    second = _by_trajectories(config, ipc, experts)
    why = (
        f"{quick.method.name} on {config.model} for {FIRST_SHARE:.0%} of the time, then mtt with {experts.count} "
        f"experts ({experts.model}, {experts.training.epochs} epochs, some {experts.seconds / 60:.1f} of "
        f"{budget / 60:.3g} minutes), and the better of both by held-out accuracy; {reason}"
    )
    return Strategy(replace(quick, budget=FIRST_SHARE * budget), second, experts, augment, budget, nets, why)


def carry_out(
    chosen: Strategy,
    real: RealData,
    folder: Path,
    run: Callable[[RunConfig, Path], Run],
    screen: Screen = SILENT,
) -> Run:
    """The better of a strategy's attempts, with a copy of its run folder in the strategy's own.

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
    if chosen.second is None or chosen.experts is None or chosen.budget is None:
        return run(chosen.first, folder)
    if ranks.leads():
        _begin(folder, chosen)
    began = time.perf_counter()
    first = run(chosen.first, folder / FIRST_NAME)
    if ranks.leads():
        _copy(folder / FIRST_NAME, folder, FILE_NAME)
    experts = _trained(chosen.second, chosen.experts, real, folder, screen)
    least = (1 - FIRST_SHARE - EXPERTS_SHARE) / 2 * chosen.budget
    spent = ranks.from_first(lambda: time.perf_counter() - began)
    place = RunFolder(folder / SECOND_NAME)
    left = place.settings().asked["budget"] if place.exists() else round(max(least, chosen.budget - spent), 1)
    second = run(replace(chosen.second, trajectories=experts, budget=left), folder / SECOND_NAME)
    best, other = (second, first) if second.held_out.correct >= first.held_out.correct else (first, second)
    one, two = (f"{run.distilled.provenance.method['name']} ({run.held_out.correct:.1%})" for run in (best, other))
    screen.say(f"on held-out images {one} is better than {two}: it is the result.")
    if best.folder is None:  # that of a rank which writes nothing
        return best
    _copy(best.folder, folder)
    return replace(best, folder=folder)


def _begun(folder: Path) -> Begun | None:
    path = folder / BEGUN_NAME
    if not path.exists():
        return None
    try:
        begun = from_json(Begun, read_json(path))
        parse_augmentation(begun.augment)
    except (DamagedFileError, RequestError) as error:
        raise DamagedFileError(f"{path} is not what a strategy was begun with: {error}") from error
    return begun


def _begin(folder: Path, chosen: Strategy) -> None:
    """Take a free folder, or one that a strategy was begun in and not ended."""
    if RunFolder(folder).exists() or not (folder / BEGUN_NAME).exists():
        RunFolder(folder).check_free()
    refuse_links(folder)
    if chosen.experts is not None and isinstance(chosen.first.model, str):
        write_json(folder / BEGUN_NAME, asdict(Begun(chosen.first.model, chosen.experts.count, chosen.augment)))


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


def _with_network(config: RunConfig, real: RealData, ipc: float, budget: float) -> tuple[RunConfig, float]:
    """The config with a network, and the seconds in which one of them is trained on the distilled images.

    Without one that is asked for it is the field's, with another block for each doubling of 32 pixels, and as wide as
    leaves training on the distilled images, by which they are validated and judged, a tenth of the time.
    """
    asked, images = config.model, ipc * real.num_classes
    extra = max(0, round(math.log2(min(real.train.images.shape[2:]) / 32)))
    names = [f"convnet{f'd{3 + extra}' if extra else ''}{f'w{width}' if width < 128 else ''}" for width in WIDTHS]
    judging = math.inf
    for name in names if asked == AUTO else [asked]:
        config = replace(config, model=name)
        judging = _seconds_of_training(config, real, name) * images * EPOCHS_AUGMENTED
        if judging <= budget / 10:
            break
    return config, max(judging, 1e-3)


def _mean_ipc(config: RunConfig, real: RealData) -> float:
    ipc = resolve_ipc(config.images_per_class, real)
    return sum(ipc) / len(ipc) if isinstance(ipc, tuple) else float(ipc)


def _augmentation(config: RunConfig, real: RealData, budget: float | None, screen: Screen) -> tuple[str, str]:
    """How distilled images are changed in training, and the sentence for people: tried, where there is time for it."""
    known = candidates(real)
    ipc, model = real.check_ipc(resolve_ipc(config.images_per_class, real)), _narrower(config) or config.model
    share = TRIED_SHARE * (parse_duration(BUDGET) or 0.0 if budget is None else budget)
    epochs = epochs_within(share, _seconds_of_training(config, real, model), real, ipc)
    if epochs < LEAST_EPOCHS:
        return known[0], f"augmentation {known[0]}, since trying others would take too long"
    device = resolve_device(config.device)
    with screen.bar("trying augmentations", TRIED_NETS * len(known)) as count:
        network = network_for(model, real.to(device), device)
        tried = try_augmentations(
            network, real.to(device), ipc, epochs=epochs, scheme=config.scheme, seed=config.seed, count=count
        )
    best, usual = (tried.accuracies[name] for name in (tried.best, known[0]))
    than = "" if tried.best == known[0] else f", {usual:.1%} with {known[0]}"
    return tried.best, f"augmentation {tried.best}: random real images teach best with it ({best:.1%}{than})"


def _quick(config: RunConfig, ipc: float, augment: str) -> RunConfig:
    """Gradients or mean features, with the rates of the recipes `mnist-dc-1`, `cifar-10-dsa-1` and `mnist-dm-10`."""
    outer: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.5, "schedule": "cosine", "eval_every": 400}
    name, outer["lr"] = ("dm", 5.0) if ipc >= FEW else ("dsa", 2.0)
    options = {"batch": 32, "images": "real", "augment": augment, "matched_on": _narrower(config) or "same"}
    return replace(config, method=METHODS.get(name).build(options)).changed({"outer": outer})


def _by_trajectories(config: RunConfig, ipc: float, experts: Experts) -> RunConfig:
    """Trajectories with the settings of the recipes `cifar-10-mtt-1` and `-10`."""
    many, epochs = ipc >= FEW, experts.training.epochs // _starts(ipc)
    options = {
        "student_steps": _STUDENT_STEPS,
        "expert_epochs": epochs,
        "inner_batch": _INNER_BATCH if many else 0,
        "max_start_epoch": experts.training.epochs - epochs,
        "learning_rate": 0.01 if many else 0.05,
        "images": "kmeans" if many else "mean",
        "augment": experts.training.augment,
        "matched_on": experts.model,
        "trained_at": 0.01,
    }
    outer = {"lr": 0.02, "lr_lr": 0.03, "betas": (0.9, 0.99), "schedule": "cosine"}
    outer["eval_every"] = 200 if many else 400
    return replace(config, method=METHODS.get("mtt").build(options)).changed({"outer": outer})


def _starts(ipc: float) -> int:
    """Epochs of an expert, in ways of a student: the more images, the later the experts that they can follow."""
    return 3 if ipc < FEW else 8


def _experts(
    config: RunConfig, real: RealData, ipc: float, budget: float, augment: str, begun: Begun | None
) -> Experts | None:
    """As many experts as the time bears, or as were begun with; None where there are too few."""
    model = _narrower(config)
    if model is None:
        return None
    count = len(real.train.images)
    batch = max(1, min(_BATCH, count // 8))
    walk = math.ceil(count / batch)
    epochs = max(1, round(_WAY / walk)) * _starts(ipc)
    seconds = _seconds_of_training(config, real, model)
    images = ipc * real.num_classes if ipc < FEW else _INNER_BATCH
    step = seconds * images * _STUDENT_STEPS * _GRADIENTS
    if begun is None and step * _OUTER_STEPS > (1 - FIRST_SHARE - EXPERTS_SHARE) * budget:
        return None
    each = seconds * batch * walk * epochs
    fits = int(EXPERTS_SHARE * budget / each) if begun is None else begun.experts
    if fits < EXPERTS[0]:
        return None
    training = TrainRecipe(epochs=epochs, lr=0.05, batch=batch, optimizer="sgd", schedule="constant")
    number = min(fits, EXPERTS[-1])
    return Experts(number, model, replace(training, augment=augment), number * each)


def _narrower(config: RunConfig) -> str | None:
    """The network that is matched: a narrow ConvNet, or a built-in network as it is; None for one's own."""
    if not isinstance(config.model, str) or not is_built_in(config.model):
        return None
    name = config.model.lower()
    width = re.search(r"w(\d+)", name)
    if not name.startswith("convnet") or (width and int(width[1]) <= NARROW):
        return name
    return (name.replace(width[0], "") if width else name) + f"w{NARROW}"


def _seconds_of_training(config: RunConfig, real: RealData, model: str | ModelFactory) -> float:
    """Seconds by the clock for one image in one epoch of an expert, on all cores."""
    device = resolve_device(config.device)
    if device.type == "cpu":
        kernels.build()
    real = real.to(device)
    network = network_for(model, real, device)
    weights = draw_weights(network.module, config.scheme, stream(config.seed, "timed"))
    images, labels = real.train.images[:_TIMED], real.train.labels[:_TIMED]
    seconds = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        loss, _ = batch_gradient(network, weights, images, labels, _CHUNK)
        float(loss)
        seconds.append(time.perf_counter() - began)
    return min(seconds) / len(images)

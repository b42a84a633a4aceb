"""Strategies: what is distilled, by which methods, for so many images of some data in so much time.

They are for networks that nobody has seen, so for random initial weights. For few images per class a strategy first
differentiates through windows of training, which is dear for many. Otherwise it first makes a set quickly, by matching
gradients or mean features, tries on that how images are best changed while a network is trained on them
(`experiments.augmentation`), and makes another by the same method under that augmentation. Then, where there is time
for experts, it makes one by trajectories. The best by held-out accuracy is the result, each as it is best trained on.
`experiments.attempts` carries it out.
"""

import math
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from datadistill.data.augment import parse_augmentation
from datadistill.data.ipc import resolve_ipc
from datadistill.data.real import RealData
from datadistill.distillation.budget import parse_duration
from datadistill.distillation.config import RunConfig
from datadistill.distillation.run_folder import RunFolder
from datadistill.engine import kernels
from datadistill.engine.functional import Network, batch_gradient
from datadistill.engine.networks import network_for
from datadistill.experiments.augmentation import NETS as TRIED_NETS
from datadistill.experiments.augmentation import Tried, candidates, epochs_within
from datadistill.methods import METHODS, options_of
from datadistill.models import ModelFactory, is_built_in
from datadistill.models.gate import passed
from datadistill.models.init import draw_weights
from datadistill.training.recipe import EPOCHS_AUGMENTED, TrainRecipe
from datadistill.utils import ranks
from datadistill.utils.errors import DamagedFileError, RequestError, require
from datadistill.utils.files import read_json
from datadistill.utils.runtime import resolve_device, stream
from datadistill.utils.schema import from_json

AUTO, LINE = "auto", "what is best for so many images in so much time"
BUDGET = "10m"
FIRST_SHARE, TRIED_SHARE, EXPERTS_SHARE = 0.15, 0.06, 0.25
"""Of the time: for the first attempt, and for the same method again; for trying augmentations, on each of three
attempts; at most, for experts."""

UNROLLED_SHARE = 0.4
"""Of the time, for a first attempt through windows of training, which is made once."""

SECOND_SHARE = 1 - 2 * FIRST_SHARE - 3 * TRIED_SHARE - EXPERTS_SHARE
"""Of the time, at least, for matching trajectories, where windows of training are not the first attempt."""

LEAST_EPOCHS = 100
"""Of networks by which augmentations are compared: fewer would say too little of what many do."""

EXPERTS = range(3, 13)
"""How many are worth it: images learn fewer by heart, and more give little."""

BEGUN_NAME, EXPERTS_NAME, FIRST_NAME, AGAIN_NAME, SECOND_NAME = "strategy.json", "experts", "first", "again", "second"
"""In a strategy's folder: what it was begun with, its experts, and its attempts: the quick one, the same method under
another augmentation, and trajectories."""

WIDTHS, NETS = (128, 64, 32, 16), range(3, 21)
"""Of the network that a set is for, where none is named; and how many judge it."""

NARROW = 32
"""Channels of the ConvNet that is matched: many outer steps are worth more than its width."""

FEW = 3
"""Images per class, below which windows of training are differentiated first, or gradients matched where the network is
no ConvNet, and mean features from there on."""

WINDOWS = {"inner_steps": 40, "window": 20, "learning_rate": 0.003, "labels": "soft", "images": "kmeans", "batch": 256}
"""Options of `rat_bptt`, on a network of `NARROW` channels; one with more is trained longer at a lower rate."""

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
        experts: how many; 0 for none.
        epochs: of networks by which augmentations are tried; 0 where they are not.
        tried: what that gave, by attempt.
    """

    model: str
    experts: int
    epochs: int = 0
    tried: dict[str, Tried] = field(default_factory=dict)


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
        first: the quick attempt, or all there is.
        second: the one by trajectories, all but its experts and its share of the time; None without time for experts.
        experts: that are trained for it.
        epochs: of networks by which augmentations are tried; 0: they are not.
        budget: of all together, in seconds; None where the first attempt is all.
        nets: fresh networks to judge by: as many as half of the time trains, 3 at least.
        why: one sentence for people.
    """

    first: RunConfig
    second: RunConfig | None
    experts: Experts | None
    epochs: int
    budget: float | None
    nets: int
    why: str


def config_to_start_from() -> RunConfig:
    """Config that flags start from, before the dataset is known and methods are chosen."""
    info = METHODS.get("dm")
    return RunConfig(method=info.build({})).changed({"run": {**info.run, "iterations": None, "model": AUTO}})


def choose(config: RunConfig, real: RealData, folder: Path | None = None) -> Strategy:
    """Strategy for some data, number of images and time.

    Args:
        config: what was asked for; its method is replaced. Without a length it gets `BUDGET`.
        real: the dataset.
        folder: that of a strategy which was interrupted, to go on with what it chose by the clock.

    Raises:
        RequestError: initial weights that are not random, a pool, or a folder that names a network which only the user
            may ask for.
        DamagedFileError: what the folder was begun with cannot be read.
    """
    if config.weights != "random-init" or config.pool is not None or config.attack is not None:
        raise RequestError("method auto is for networks with random initial weights: name a --method for anything else")
    if config.iterations is None and config.budget is None:
        config = replace(config, budget=BUDGET)
    begun = None if folder is None else begun_in(folder)
    if begun is not None and config.model == AUTO:
        config = replace(config, model=passed("network", None, begun.model, file=f"{folder}/{BEGUN_NAME}"))
    budget, ipc = parse_duration(config.budget), _mean_ipc(config, real)
    config, judging = _with_network(config, real, ipc, budget or parse_duration(BUDGET) or 0.0)
    nets = int(max(NETS[0], min(NETS[-1], (budget or math.inf) / 2 / judging)))
    quick = _quick(config, real, ipc, folder)
    unrolls, on = not is_tried(quick), f"{quick.method.name} on {config.model}"
    if budget is None:
        return Strategy(quick, None, None, 0, None, nets, f"{on}: without a budget there is no time for more")
    each = _seconds_of_training(config, real, narrower(config) or config.model)
    experts = _experts(config, real, ipc, second_share(unrolls) * budget, budget, each, begun)
    if unrolls and experts is None:
        return Strategy(quick, None, None, 0, None, nets, f"{on}: trajectories of experts would take too long")
    epochs = _epochs(config, real, budget, each) if begun is None else begun.epochs
    tried = (
        f"augmentation and length of training by what {epochs} epochs with each give"
        if epochs
        else "no time to try augmentations"
    )
    if experts is None and not epochs:
        why = f"{on}: trajectories of experts would take too long, and so would trying augmentations"
        return Strategy(quick, None, None, 0, None, nets, why)
    share = UNROLLED_SHARE if unrolls else FIRST_SHARE
    first = replace(quick, budget=share * budget)
    if experts is None:
        why = f"{on}, twice: quickly, and then for the rest of the time ({tried}); experts would take too long"
        return Strategy(first, None, None, epochs, budget, nets, why)
    why = (
        f"{on} for {share:.0%} of the time ({tried}), then mtt with {experts.count} experts ({experts.model}, "
        f"{experts.training.epochs} epochs, some {experts.seconds / 60:.1f} of {budget / 60:.3g} minutes), and the "
        "best by held-out accuracy"
    )
    return Strategy(first, _by_trajectories(config, ipc, experts), experts, epochs, budget, nets, why)


def is_tried(config: RunConfig) -> bool:
    """Whether networks can be trained on what a method makes with any augmentation; else its result says with which."""
    return "trained_with" in options_of(config.method)


def begun_in(folder: Path) -> Begun | None:
    """What a strategy was begun with in a folder; None where none was.

    Raises:
        DamagedFileError: that cannot be read, or means nothing.
    """
    path = folder / BEGUN_NAME
    if not path.exists():
        return None
    try:
        begun = from_json(Begun, read_json(path))
        for tried in begun.tried.values():
            for name in tried.accuracies:
                parse_augmentation(name)
            require(len(tried.accuracies) > 0, "nothing was tried")
            require(0 < tried.epochs <= EPOCHS_AUGMENTED, f"augmentations were tried for {tried.epochs} epochs")
        require(0 <= begun.epochs <= EPOCHS_AUGMENTED, f"augmentations were tried for {begun.epochs} epochs")
    except (DamagedFileError, RequestError) as error:
        raise DamagedFileError(f"{path} is not what a strategy was begun with: {error}") from error
    return begun


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


def _epochs(config: RunConfig, real: RealData, budget: float, each: float) -> int:
    """Epochs of networks by which augmentations are tried; 0 where there is time for too few.

    An image takes `each` seconds at least, so that where that is too long already nothing is timed.
    """
    images, seconds = sum(real.check_ipc(resolve_ipc(config.images_per_class, real))), TRIED_SHARE * budget
    if TRIED_NETS * (LEAST_EPOCHS * len(candidates(real)) + EPOCHS_AUGMENTED) * images * each > seconds:
        return 0
    here = real.to(resolve_device(config.device))
    epochs = epochs_within(seconds, network_of(config, here, narrower(config) or config.model), here, images)
    return epochs if epochs >= LEAST_EPOCHS else 0


def network_of(config: RunConfig, real: RealData, model: str | ModelFactory) -> Network:
    """A network as the runs have it, where the data is."""
    device = real.train.images.device
    if device.type == "cpu":
        kernels.build()
    return network_for(model, real, device, config.batch_norm, config.engine.kernels)


def _networks(config: RunConfig, folder: Path | None) -> int:
    """Networks of an outer step through windows of training: one for each core, or as many as it was begun with."""
    if folder is not None:
        place = RunFolder(folder / FIRST_NAME if (folder / BEGUN_NAME).exists() else folder)
        begun = place.settings().asked["method"].get("networks") if place.exists() else None
        if isinstance(begun, int):
            return begun
    return torch.get_num_threads() * ranks.count() if resolve_device(config.device).type == "cpu" else 1


def _quick(config: RunConfig, real: RealData, ipc: float, folder: Path | None) -> RunConfig:
    """Windows of training, gradients, or mean features.

    The rates are those of the recipes `fashion-mnist-best-1`, `mnist-dc-1`, `cifar-10-dsa-1` and `mnist-dm-10`.
    """
    narrow = narrower(config)
    if ipc < FEW and narrow is not None and narrow.startswith("convnet"):
        augment = "flip_rotate" if real.train.images.shape[1] == 3 else "scale_rotate"
        training = {"augment": augment, "trained_for": 100, "trained_at": 0.001, "matched_on": narrow}
        unrolled = METHODS.get("rat_bptt").build(WINDOWS | training | {"networks": _networks(config, folder)})
        windows = {"lr": 0.02, "betas": (0.9, 0.999), "clip": 2.0, "schedule": "cosine", "eval_every": 250}
        return replace(config, method=unrolled).changed({"outer": windows})
    outer: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.5, "schedule": "cosine", "eval_every": 400}
    name, outer["lr"] = ("dm", 5.0) if ipc >= FEW else ("dsa", 2.0)
    options = {"batch": 32, "images": "real", "augment": candidates(real)[0], "matched_on": narrow or "same"}
    return replace(config, method=METHODS.get(name).build(options)).changed({"outer": outer})


def _by_trajectories(config: RunConfig, ipc: float, experts: Experts) -> RunConfig:
    """Trajectories with the settings of the recipes `cifar-10-mtt-1` and `fashion-mnist-best-10`.

    Students are augmented as in those, whatever the result is trained with: under warps their steps lead nowhere.
    """
    many, epochs = ipc >= FEW, experts.training.epochs // _starts(ipc)
    options = {
        "student_steps": _STUDENT_STEPS,
        "expert_epochs": epochs,
        "inner_batch": _INNER_BATCH if many else 0,
        "max_start_epoch": experts.training.epochs - epochs,
        "learning_rate": 0.01 if many else 0.05,
        "images": "kmeans" if many else "mean",
        "labels": "soft" if many else "hard",
        "augment": experts.training.augment,
        "matched_on": experts.model,
        "trained_at": 0.01,
    }
    outer = {"lr": 0.02, "lr_lr": 0.03, "lr_label": 0.01, "betas": (0.9, 0.99), "schedule": "cosine"}
    outer["eval_every"] = 200 if many else 400
    return replace(config, method=METHODS.get("mtt").build(options)).changed({"outer": outer})


def second_share(unrolls: bool) -> float:
    """Of the time, at least, for matching trajectories, after windows of training or after other attempts."""
    return 1 - UNROLLED_SHARE - 2 * TRIED_SHARE - EXPERTS_SHARE if unrolls else SECOND_SHARE


def _starts(ipc: float) -> int:
    """Epochs of an expert, in ways of a student: the more images, the later the experts that they can follow."""
    return 3 if ipc < FEW else 8


def _experts(
    config: RunConfig, real: RealData, ipc: float, rest: float, budget: float, each: float, begun: Begun | None
) -> Experts | None:
    """As many experts as the time bears, or as were begun with; None where there are too few.

    An image takes `each` seconds in an epoch. Of the budget, `rest` seconds are for matching trajectories.
    """
    model = narrower(config)
    if model is None:
        return None
    count = len(real.train.images)
    batch = max(1, min(_BATCH, count // 8))
    walk = math.ceil(count / batch)
    epochs = max(1, round(_WAY / walk)) * _starts(ipc)
    images = ipc * real.num_classes if ipc < FEW else _INNER_BATCH
    step = each * images * _STUDENT_STEPS * _GRADIENTS
    if begun is None and step * _OUTER_STEPS > rest:
        return None
    training_one = each * batch * walk * epochs
    fits = int(EXPERTS_SHARE * budget / training_one) if begun is None else begun.experts
    if fits < EXPERTS[0]:
        return None
    training = TrainRecipe(epochs=epochs, lr=0.05, batch=batch, optimizer="sgd", schedule="constant")
    number = min(fits, EXPERTS[-1])
    return Experts(number, model, replace(training, augment=candidates(real)[0]), number * training_one)


def narrower(config: RunConfig) -> str | None:
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
    real = real.to(resolve_device(config.device))
    network = network_of(config, real, model)
    weights = draw_weights(network.module, config.scheme, stream(config.seed, "timed"))
    images, labels = real.train.images[:_TIMED], real.train.labels[:_TIMED]
    seconds = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        loss, _ = batch_gradient(network, weights, images, labels, _CHUNK)
        float(loss)
        seconds.append(time.perf_counter() - began)
    return min(seconds) / len(images)

"""Strategies: which method, with which settings, for so many images of some data in so much time.

They are for networks that nobody has seen, so for random initial weights. What a strategy takes is written into the run
folder as if it had been asked for, so that the same run can be made again by name.
"""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from datadistill.data.ipc import resolve_ipc
from datadistill.data.real import RealData
from datadistill.distillation.budget import parse_duration
from datadistill.distillation.config import RunConfig
from datadistill.engine import kernels
from datadistill.engine.functional import batch_gradient
from datadistill.engine.networks import network_for
from datadistill.methods import METHODS
from datadistill.methods.dc import DSA_STRATEGY
from datadistill.models.init import draw_weights
from datadistill.pretraining.make import make_trajectories
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.errors import RequestError
from datadistill.utils.progress import SILENT, Screen
from datadistill.utils.runtime import resolve_device, stream

AUTO, LINE = "auto", "the best for so many images and so much time"
BUDGET = "10m"
SHARE = 0.35
"""Of the time, for experts."""

EXPERTS = range(3, 13)
"""How many are worth it: images learn fewer by heart, and more give little."""

_BATCH, _WAY = 512, 88
"""Images per step of an expert, and how many steps a student is to follow."""

_TIMED, _TIMES, _CHUNK = 256, 4, 32
"""Images on which training is timed, how often, and how many at a time."""


@dataclass(frozen=True)
class Experts:
    """Experts that a strategy trains first.

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
        config: of the run, all but the experts' folder; its budget is for experts and run together.
        experts: that are trained first, if any.
        why: one sentence for people.
    """

    config: RunConfig
    experts: Experts | None
    why: str


def first_config() -> RunConfig:
    """Config that flags start from, before the dataset is known and a method chosen."""
    info = METHODS.get("dm")
    return RunConfig(method=info.build({})).changed({"run": {**info.run, "iterations": None, "model": AUTO}})


def choose(config: RunConfig, real: RealData) -> Strategy:
    """Strategy for some data, number of images and time.

    Trajectories of experts make the better set where there is time for a few experts; without it, mean features do.

    Args:
        config: what was asked for; its method is replaced. Without a length it gets `BUDGET`.
        real: the dataset.

    Raises:
        RequestError: initial weights that are not random, or a pool.
    """
    if config.weights != "random-init" or config.pool is not None or config.attack is not None:
        raise RequestError("method auto is for networks with random initial weights: name a --method for anything else")
    if config.model == AUTO:
        config = replace(config, model=_convnet_for(real))
    if config.iterations is None and config.budget is None:
        config = replace(config, budget=BUDGET)
    budget = parse_duration(config.budget)
    ipc = _mean_ipc(config, real)
    if budget is None:
        return Strategy(
            _matching_features(config, real, ipc), None, "mean features (dm): no budget, so no time for experts"
        )
    experts = _experts(config, real, ipc, budget)
    if experts is None:
        why = f"mean features (dm): {EXPERTS[0]} experts would take more than a third of the time"
        return Strategy(_matching_features(config, real, ipc), None, why)
    why = (
        f"trajectories (mtt) of {experts.count} experts ({experts.model}, {experts.training.epochs} epochs), "
        f"which take some {experts.seconds / 60:.1f} of {budget / 60:.3g} minutes"
    )
    return Strategy(_matching_trajectories(config, real, ipc, experts), experts, why)


def with_experts(chosen: Strategy, real: RealData, out: Path, screen: Screen = SILENT) -> RunConfig:
    """The run's config, with experts in a folder and the time that is left after they were trained.

    Experts that are there already are kept, and cost no time.

    Args:
        chosen: the strategy.
        real: the dataset.
        out: the experts' folder.
        screen: who is told how it is doing.
    """
    experts, config = chosen.experts, chosen.config
    if experts is None:
        return config
    began, budget = time.perf_counter(), parse_duration(config.budget)
    assert budget is not None, "experts go by the budget"
    with screen.bar(f"training {experts.count} experts", experts.count * experts.training.epochs) as count:
        trajectories = make_trajectories(
            real,
            out,
            model=experts.model,
            scheme=config.scheme,
            experts=experts.count,
            training=experts.training,
            batch_norm=config.batch_norm,
            seed=config.seed,
            device=str(config.device),
            resume=out.exists(),
            say=screen.say,
            count=count,
        )
    left = max(budget - (time.perf_counter() - began), budget / 2)
    return replace(config, trajectories=trajectories.folder, budget=round(left, 1))


def _convnet_for(real: RealData) -> str:
    """The field's network, with another block for each doubling of 32 pixels."""
    extra = max(0, round(math.log2(min(real.train.images.shape[2:]) / 32)))
    return f"convnetD{3 + extra}" if extra else "convnet"


def _mean_ipc(config: RunConfig, real: RealData) -> float:
    ipc = resolve_ipc(config.images_per_class, real)
    return sum(ipc) / len(ipc) if isinstance(ipc, tuple) else float(ipc)


def _augmentation(real: RealData) -> str:
    """How distilled images are changed in training; grey ones, often digits or letters, are not mirrored."""
    return DSA_STRATEGY if real.train.images.shape[1] == 3 else DSA_STRATEGY.replace("_flip", "")


def _matching_features(config: RunConfig, real: RealData, ipc: float) -> RunConfig:
    info = METHODS.get("dm")
    config = replace(config, method=info.build({"augment": _augmentation(real)}))
    return config.changed({"outer": info.outer}).changed(info.by_ipc(ipc))


def _matching_trajectories(config: RunConfig, real: RealData, ipc: float, experts: Experts) -> RunConfig:
    """As the recipes `cifar-10-mtt-1` and `-10` have it; more images begin from cluster centres."""
    many, proxy = ipc >= 3, experts.model
    epochs = experts.training.epochs // _starts(ipc)
    options = {
        "student_steps": 20,
        "expert_epochs": epochs,
        "inner_batch": 50 if many else 0,
        "max_start_epoch": experts.training.epochs - epochs,
        "learning_rate": 0.01 if many else 0.05,
        "images": "kmeans" if many else "mean",
        "augment": _augmentation(real),
        "matched_on": "same" if proxy == config.model else proxy,
        "trained_at": 0.01,
    }
    outer = {"lr": 0.02, "lr_lr": 0.03, "betas": (0.9, 0.99), "schedule": "cosine", "eval_every": 200}
    return replace(config, method=METHODS.get("mtt").build(options)).changed({"outer": outer})


def _starts(ipc: float) -> int:
    """Epochs of an expert, in ways of a student: the more images, the later the experts that they can follow."""
    return 3 if ipc < 3 else 8


def _experts(config: RunConfig, real: RealData, ipc: float, budget: float) -> Experts | None:
    """As many experts as the time bears, or None."""
    model = _narrower(config.model)
    if model is None:
        return None
    count = len(real.train.images)
    batch = max(1, min(_BATCH, count // 8))
    walk = math.ceil(count / batch)
    epochs = max(1, round(_WAY / walk)) * _starts(ipc)
    each = _seconds_of_training(config, real, model) * batch * walk * epochs
    fits = int(SHARE * budget / each)
    if fits < EXPERTS[0]:
        return None
    training = TrainRecipe(epochs=epochs, lr=0.05, batch=batch, optimizer="sgd", schedule="constant")
    training = replace(training, augment=_augmentation(real))
    number = min(fits, EXPERTS[-1])
    return Experts(number, model, training, number * each)


def _narrower(model: object) -> str | None:
    """The network that is matched: a ConvNet of 32 channels, or a built-in network as it is."""
    if not isinstance(model, str) or ":" in model:
        return None
    name = model.lower()
    return f"{name}w32" if name.startswith("convnet") and "w" not in name.removeprefix("convnet") else name


def _seconds_of_training(config: RunConfig, real: RealData, model: str) -> float:
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

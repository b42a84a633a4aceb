"""Recording: trains experts and keeps their weights after every epoch.

As in a pool, every expert has generators of its own, and on a CPU a single core: its bits depend neither on the number
of cores nor on which experts are trained beside it or were kept from before.
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datadistill.data import Datasets, RealData, as_real
from datadistill.engine import Network, Weights, kernels, make_network
from datadistill.engine.parallel import each_on_one_core
from datadistill.models import SCHEMES, ModelFactory, create_model, draw_weights, model_name
from datadistill.pretraining.pool import stacked_in_half
from datadistill.pretraining.trajectories import (
    FACTS_NAME,
    MEASURED,
    Trajectories,
    TrajectoryFacts,
    expert_path,
    load_trajectories,
    read_expert,
    save_facts,
    write_expert,
)
from datadistill.training.accuracy import accuracy_of
from datadistill.training.train import Training, train
from datadistill.utils.errors import DatadistillError, Interrupted, RequestError
from datadistill.utils.files import read_json, write_json
from datadistill.utils.interrupts import StopRequest
from datadistill.utils.runtime import resolve_device, stream, versions

EXPERTS = 100
EXPERT_TRAINING = Training(
    epochs=50,
    rate=0.01,
    batch=256,
    optimizer="sgd",
    falls="constant",
    augment="color_crop_cutout_flip_scale_rotate",
)
"""How Cazenavette et al. 2022 train experts for CIFAR-10, as their code does by default."""

MAX_GB = 5.0


def make_trajectories(
    real: RealData | Datasets,
    out: str | Path,
    *,
    model: str | ModelFactory = "convnet",
    scheme: str = "default",
    experts: int = EXPERTS,
    training: Training = EXPERT_TRAINING,
    batch_norm: str = "refused",
    seed: int = 0,
    device: str = "auto",
    max_gb: float = MAX_GB,
    resume: bool = False,
    command: str = "",
    say: Callable[[str], None] = lambda text: None,
    count: Callable[[], None] = lambda: None,
) -> Trajectories:
    """Train experts on a dataset, several at a time, and write the weights of every epoch into a folder.

    Args:
        real: the dataset, or a training and a test `Dataset`; training sees its training split, and never the
            held-out slice.
        out: the folder.
        model: the network, by name or as a function that returns a `torch.nn.Module`.
        scheme: how weights before training are drawn, one of `models.SCHEMES`.
        experts: how many.
        training: epochs, rate, batch and augmentation.
        batch_norm: what layers with running statistics do: `refused` or `batch`.
        seed: of all randomness; the same seed gives the same bits.
        device: `auto`, `cpu`, `cuda` or `mps`.
        max_gb: more gigabytes on the disk are refused.
        resume: keep the experts that an earlier call with the same settings has finished.
        command: what to record as the command that made them.
        say: called with a sentence worth reading.
        count: called after each epoch of each expert, `experts x epochs` times.

    Raises:
        RequestError: the request was wrong.
        Interrupted: Ctrl-C; finished experts are kept.
        DatadistillError: training diverged, or a file could not be written.
    """
    if experts < 1 or training.epochs < 1:
        raise RequestError(f"{experts} experts of {training.epochs} epochs are no trajectories: ask for 1 or more each")
    if batch_norm not in ("refused", "batch"):
        raise RequestError(f"the batch norm policy is {batch_norm}, but experts keep no running statistics: use batch")
    on = resolve_device(device)
    real = as_real(real).to(on)
    module = create_model(model, real).to(on)
    _check_size(module, experts, training.epochs, max_gb, say)
    if on.type == "cpu":
        kernels.prepare(say)
    facts = TrajectoryFacts(
        dataset=real.origin,
        classes=real.classes,
        normalization=real.normalization.by_channel,
        zca=real.is_whitened,
        image_shape=tuple(real.train.images.shape[1:]),
        model=model_name(model),
        scheme=SCHEMES.get(scheme).name,
        batch_norm=batch_norm,
        training=training,
        seed=seed,
        versions=versions(),
        recipe=command,
    )
    making = _Recording(real, make_network(module, batch_norm), facts, experts, Path(out), count, threading.Lock())
    if resume and not making.folder.exists():
        say(f"there is nothing of {out} yet: starting from the beginning.")
    if not making.begin(resume):
        say(f"{out} is finished already.")
        return load_trajectories(out)
    with StopRequest() as stop:
        making.train_missing(stop, say)
    return making.finish()


def size_of(module: nn.Module, experts: int, epochs: int) -> int:
    """Bytes of the weights of all epochs of all experts."""
    return 2 * sum(weight.numel() for weight in module.parameters()) * (epochs + 1) * experts


def _check_size(module: nn.Module, experts: int, epochs: int, max_gb: float, say: Callable[[str], None]) -> None:
    size = size_of(module, experts, epochs)
    if not size <= max_gb * 1e9:
        raise RequestError(
            f"the trajectories of {experts} experts take {size / 1e9:.3g} GB, but {max_gb:g} GB are allowed: lower "
            "--nets or --epochs, or raise --max-gb"
        )
    say(f"{experts} experts, {epochs + 1} times each, take {size / 1e6:.1f} MB.")


@dataclass(frozen=True, eq=False)
class _Recording:
    """Trajectories in the making.

    Attributes:
        real: the dataset, on the device.
        network: the architecture, on the device.
        facts: of the trajectories; what is measured is not known yet.
        experts: how many.
        folder: where they go.
        count: called after each epoch of each expert.
        alone: held by the thread that counts.
    """

    real: RealData
    network: Network
    facts: TrajectoryFacts
    experts: int
    folder: Path
    count: Callable[[], None]
    alone: threading.Lock

    @property
    def device(self) -> torch.device:
        return self.real.train.images.device

    def begin(self, resume: bool) -> bool:
        """Make or check the folder; False where all of it is there already.

        Raises:
            RequestError: something else is in the way.
        """
        config, settings = self.folder / "config.json", _identity(self.facts, self.experts)
        if (self.folder / FACTS_NAME).exists():
            there = load_trajectories(self.folder)
            if resume and _identity(there.facts, len(there)) == settings:
                return False
            raise RequestError(f"{self.folder} holds trajectories already: give another --out")
        settings |= {"device": self.device.type}
        if not config.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise RequestError(f"{self.folder} holds something else than trajectories: give another --out")
            write_json(config, settings)
        elif not resume:
            raise RequestError(f"{self.folder} holds experts from before: add --resume to keep them, or remove it")
        before = read_json(config)
        for name, value in settings.items():
            found = before.get(name) if isinstance(before, dict) else None
            if found != value:
                raise RequestError(f"the experts in {self.folder} have {name} {found}, but {value} is asked for")
        return True

    def train_missing(self, stop: StopRequest, say: Callable[[str], None]) -> None:
        """Train the experts that are not finished yet."""
        epochs, missing = self.facts.training.epochs, []
        for index in range(self.experts):
            path = expert_path(self.folder, index)
            try:
                expert, _ = read_expert(path, epochs)
                for epoch in range(epochs + 1):
                    expert.weights(epoch)
            except DatadistillError as error:
                if path.exists():
                    say(f"expert {index + 1} is trained again: {error}.")
                missing.append(index)
        kept = self.experts - len(missing)
        if kept:
            say(f"{kept} of {self.experts} experts are there already.")
        for _ in range(kept * epochs):
            self.count()
        each_on_one_core(lambda index: self._train(index, stop), missing, self.device)

    def finish(self) -> Trajectories:
        """Write the facts, by which the folder is known to be whole."""
        epochs = self.facts.training.epochs
        found = [read_expert(expert_path(self.folder, index), epochs)[0] for index in range(self.experts)]
        facts = replace(
            self.facts,
            digests=tuple(expert.digest for expert in found),
            accuracies=tuple(expert.accuracy for expert in found),
            seconds=round(sum(expert.seconds for expert in found), 3),
        )
        save_facts(self.folder, facts)
        (self.folder / "config.json").unlink()
        return load_trajectories(self.folder)

    def _train(self, index: int, stop: StopRequest) -> None:
        """Train one expert and write its file."""

        def count() -> None:
            with self.alone:
                self.count()
            if stop.requested:
                raise Interrupted("interrupted; experts that are finished are kept", self.folder)

        facts, began, kept = self.facts, time.perf_counter(), list[Weights]()

        def keep(weights: Weights) -> None:
            kept.append({name: weight.cpu() for name, weight in weights.items()})

        with self.network.alone:
            start = draw_weights(self.network.module, facts.scheme, stream(facts.seed, "expert", index, "start"))
        order, split = stream(facts.seed, "expert", index, "order"), self.real.train
        train(self.network, start, split.images, split.labels, facts.training, order, count, keep)
        if not all(bool(weight.isfinite().all()) for weight in kept[-1].values()):
            raise DatadistillError(f"the weights of expert {index + 1} are not finite: give a lower --rate")
        seconds = time.perf_counter() - began
        last = {name: stack[0].float().to(self.device) for name, stack in stacked_in_half(kept[-1:]).items()}
        accuracy = accuracy_of(self.network, last, self.real.held_out).correct
        write_expert(expert_path(self.folder, index), kept, accuracy, seconds)


def _identity(facts: TrajectoryFacts, experts: int) -> dict[str, Any]:
    """What was asked for, as JSON gives it back."""
    known = {name: value for name, value in facts.known().items() if name not in (*MEASURED, "digests")}
    return dict(json.loads(json.dumps({**known, "experts": experts})))

"""Experts: many networks trained on real images, kept as a pool.

Every network has generators of its own, and on a CPU a single core, so that its bits depend neither on the number of
cores nor on which networks are trained beside it or were kept from before.
"""

import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datadistill.data import Datasets, RealData, Split, as_real
from datadistill.engine import Network, Weights, kernels, make_network
from datadistill.engine.parallel import each_on_one_core
from datadistill.models import SCHEMES, ModelFactory, create_model, draw_weights, model_name
from datadistill.pretraining.pool import MEASURED, Networks, Pool, PoolFacts, check_shares, load_pool, stacked_in_half
from datadistill.training.accuracy import accuracy_of
from datadistill.training.train import Training, train
from datadistill.utils.errors import DamagedFileError, DatadistillError, Interrupted, RequestError
from datadistill.utils.files import digest_of, read_json, read_tensors, write_json, write_tensors
from datadistill.utils.interrupts import StopRequest
from datadistill.utils.runtime import resolve_device, stream, versions

NETS, RESERVED, MAX_GB = 50, 10, 2.0


def make_pool(
    real: RealData | Datasets,
    out: str | Path,
    *,
    model: str | ModelFactory = "lenet",
    scheme: str = "xavier",
    nets: int | None = None,
    reserved: int | None = None,
    training: Training | None = None,
    start: Pool | str | Path | None = None,
    batch_norm: str = "refused",
    seed: int = 0,
    device: str = "auto",
    test: bool = False,
    max_gb: float = MAX_GB,
    resume: bool = False,
    command: str = "",
    say: Callable[[str], None] = lambda text: None,
    count: Callable[[], None] = lambda: None,
) -> Pool:
    """Train networks on a dataset, several at a time, and write them to one file.

    Every finished network is kept in a folder beside that file until all are done.

    Args:
        real: the dataset, or a training and a test `Dataset`; training sees its training split, and never
            the held-out slice.
        out: the file.
        model: the network, by name or as a function that returns a `torch.nn.Module`.
        scheme: how weights before training are drawn, one of `models.SCHEMES`.
        nets: how many networks; 50 without it.
        reserved: how many of them are for judging only; 10 without it.
        training: epochs, rate and batch; `Training()` without one.
        start: another pool, or its file, such as of networks that know other images: each of them is trained further.
            The scheme, the number of networks and how many are reserved are then that pool's.
        batch_norm: what layers with running statistics do: `refused` or `batch`.
        seed: of all randomness; the same seed gives the same bits.
        device: `auto`, `cpu`, `cuda` or `mps`.
        test: measure accuracies on the test split too.
        max_gb: a pool that would take more gigabytes on the disk while it is made is refused.
        resume: keep the networks that an earlier call with the same settings has finished.
        command: what to record as the command that made the pool.
        say: called with a sentence worth reading.
        count: called after each epoch of each network, `nets x epochs` times.

    Raises:
        RequestError: the request was wrong.
        Interrupted: Ctrl-C; finished networks are kept.
        DatadistillError: training diverged, or a file could not be written.
    """
    start = load_pool(start) if isinstance(start, str | Path) else start
    nets, reserved = _shares(nets, reserved, start)
    if batch_norm not in ("refused", "batch"):
        raise RequestError(f"the batch norm policy is {batch_norm}, but a pool holds no running statistics: use batch")
    on = resolve_device(device)
    real = as_real(real).to(on)
    module = create_model(model, real).to(on)
    _check_size(module, nets, max_gb, say)
    if on.type == "cpu":
        kernels.prepare(say)
    network = make_network(module, batch_norm)
    if start is not None:
        start.check_fits(network, model_name(model), real)
        scheme = start.facts.scheme
    facts = PoolFacts(
        dataset=real.origin,
        classes=real.classes,
        normalization=real.normalization.by_channel,
        zca=real.is_whitened,
        image_shape=tuple(real.train.images.shape[1:]),
        model=model_name(model),
        scheme=SCHEMES.get(scheme).name,
        batch_norm=batch_norm,
        training=training or Training(),
        seed=seed,
        reserved=reserved,
        accuracies=(0.0,) * nets,
        versions=versions(),
        recipe=command,
        start="" if start is None else start.digest,
    )
    making = _Making(real, network, facts, start, Path(out), count, threading.Lock())
    if resume and not making.parts.exists() and not making.out.exists():
        say(f"there is nothing of {out} yet: starting from the beginning.")
    if not making.begin(resume):
        say(f"{out} is finished already.")
        return load_pool(out)
    with StopRequest() as stop:
        making.train_missing(stop, say)
    return making.finish(test)


def size_of(module: nn.Module, nets: int) -> tuple[int, int]:
    """Bytes of a pool's file, and of the folder that holds its networks in full precision while it is made."""
    weights = sum(weight.numel() for weight in module.parameters())
    return 2 * weights * nets, 4 * weights * nets


def _check_size(module: nn.Module, nets: int, max_gb: float, say: Callable[[str], None]) -> None:
    last, meanwhile = size_of(module, nets)
    sizes = f"{last / 1e6:.1f} MB, and {meanwhile / 1e6:.1f} MB more while they are trained"
    if not last + meanwhile <= max_gb * 1e9:
        raise RequestError(
            f"{nets} networks take {sizes}, but {max_gb:g} GB are allowed: lower --nets or raise --max-gb"
        )
    say(f"{nets} networks take {sizes}.")


def _shares(nets: int | None, reserved: int | None, start: Pool | None) -> tuple[int, int]:
    """How many networks there are, and how many of them are reserved.

    Raises:
        RequestError: impossible numbers, or others than the pool to start from has.
    """
    if start is None:
        shares = (NETS if nets is None else nets, RESERVED if reserved is None else reserved)
        check_shares(*shares)
        return shares
    shares = (len(start), start.facts.reserved)
    if nets not in (None, shares[0]) or reserved not in (None, shares[1]):
        raise RequestError(
            f"the pool to start from has {shares[0]} networks and reserves {shares[1]}, which stays so: ask for no "
            "other numbers"
        )
    return shares


def _identity(facts: PoolFacts) -> dict[str, Any]:
    """What was asked for, as JSON gives it back."""
    known = {**facts.known(), "nets": len(facts.accuracies)}
    asked = {name: value for name, value in known.items() if name not in (*MEASURED, "accuracies")}
    return dict(json.loads(json.dumps(asked)))


@dataclass(frozen=True, eq=False)
class _Making:
    """A pool in the making.

    Attributes:
        real: the dataset, on the device.
        network: the architecture, on the device.
        facts: of the pool; accuracies are not known yet.
        start: the pool whose networks are trained further, if they are.
        out: the file.
        count: called after each epoch of each network.
        alone: held by the thread that counts.
    """

    real: RealData
    network: Network
    facts: PoolFacts
    start: Pool | None
    out: Path
    count: Callable[[], None]
    alone: threading.Lock

    @property
    def parts(self) -> Path:
        """The folder with the networks that are finished."""
        return self.out.with_name(self.out.name + ".parts")

    @property
    def device(self) -> torch.device:
        return self.real.train.images.device

    def begin(self, resume: bool) -> bool:
        """Make or check the folder of parts; False where the whole pool is there already.

        Raises:
            RequestError: something else is in the way.
        """
        config, settings = self.parts / "config.json", _identity(self.facts) | {"device": self.device.type}
        if self.out.exists() and not self.parts.exists():
            if resume and _identity(load_pool(self.out).facts) == _identity(self.facts):
                return False
            raise RequestError(f"{self.out} is there already: give another --out")
        if not config.exists():
            if self.parts.exists() and any(not path.name.startswith(".") for path in self.parts.iterdir()):
                raise RequestError(f"{self.parts} holds something else than networks: give another --out")
            write_json(config, settings)
        elif not resume:
            raise RequestError(f"{self.parts} holds networks from before: add --resume to keep them, or remove it")
        before = read_json(config)
        before = before if isinstance(before, dict) else {}
        for name in settings | before:
            there, value = before.get(name), settings.get(name)
            if there != value:
                raise RequestError(f"the networks in {self.parts} have {name} {there}, but {value} is asked for")
        return True

    def train_missing(self, stop: StopRequest, say: Callable[[str], None]) -> None:
        """Train the networks that are not finished yet."""
        missing = []
        for index in range(len(self.facts.accuracies)):
            try:
                self._read(index)
            except DatadistillError as error:
                if self._part(index).exists():
                    say(f"network {index + 1} is trained again: {error}.")
                missing.append(index)
        kept = len(self.facts.accuracies) - len(missing)
        if kept:
            say(f"{kept} of {len(self.facts.accuracies)} networks are there already.")
        for _ in range(kept * self.facts.training.epochs):
            self.count()
        each_on_one_core(lambda index: self._train(index, stop), missing, self.device)

    def finish(self, test: bool) -> Pool:
        """Round the weights, measure what they are worth, and put them into one file."""
        count = len(self.facts.accuracies)
        parts = [self._read(index) for index in range(count)]
        stacked = stacked_in_half([weights for weights, _ in parts])
        rounded = Networks(stacked).to(self.device)

        def accuracies(weights_of: Callable[[int], Weights], split: Split) -> tuple[float, ...]:
            def correct(index: int) -> float:
                return accuracy_of(self.network, weights_of(index), split).correct

            return tuple(each_on_one_core(correct, range(count), self.device))

        held_out = self.real.held_out
        facts = replace(
            self.facts,
            accuracies=accuracies(rounded.__getitem__, held_out),
            unrounded=accuracies(lambda index: parts[index][0], held_out),
            test=accuracies(rounded.__getitem__, self.real.test) if test else (),
            seconds=round(sum(seconds for _, seconds in parts), 3),
        )
        Pool(facts, stacked).save(self.out)
        shutil.rmtree(self.parts, ignore_errors=True)
        return load_pool(self.out)

    def _train(self, index: int, stop: StopRequest) -> None:
        """Train one network and keep it."""

        def count() -> None:
            with self.alone:
                self.count()
            if stop.requested:
                raise Interrupted("interrupted; networks that are finished are kept", self.parts)

        facts, began, start = self.facts, time.perf_counter(), self._start(index)
        order = stream(facts.seed, "expert", index, "order")
        split = self.real.train
        weights = train(self.network, start, split.images, split.labels, facts.training, order, count)
        if not all(bool(weight.isfinite().all()) for weight in weights.values()):
            raise DatadistillError(f"the weights of network {index + 1} are not finite: give a lower --rate")
        seconds = str(time.perf_counter() - began)
        write_tensors(self._part(index), weights, {"seconds": seconds, "sha256": digest_of(weights, seconds)})

    def _start(self, index: int) -> Weights:
        """The weights with which the training of one network begins."""
        if self.start is not None:
            return {name: weight.to(self.device) for name, weight in self.start.networks[index].items()}
        draw = stream(self.facts.seed, "expert", index, "start")
        with self.network.alone:
            return draw_weights(self.network.module, self.facts.scheme, draw)

    def _part(self, index: int) -> Path:
        return self.parts / f"network-{index:05d}.safetensors"

    def _read(self, index: int) -> tuple[Weights, float]:
        """A finished network, and the seconds it took.

        Raises:
            DatadistillError: it is not there, or it is damaged.
        """
        weights, metadata = read_tensors(self._part(index))
        weights = {name: weight.to(self.device) for name, weight in weights.items()}
        if metadata.get("sha256") != digest_of(weights, metadata.get("seconds", "")):
            raise DamagedFileError(f"{self._part(index)} is damaged: its checksum differs")
        return weights, float(metadata["seconds"])

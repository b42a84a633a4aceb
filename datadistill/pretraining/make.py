"""Experts: many networks trained on real images, kept as a pool or, after every epoch, as trajectories.

Every network has generators of its own, and on a CPU a single core, so that its bits depend neither on the number of
cores nor on which networks are trained beside it or were kept from before.
"""

import math
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from datadistill.data import Datasets, RealData, Split, as_real
from datadistill.engine import Network, Weights, kernels, network_for
from datadistill.engine.parallel import each_on_one_core
from datadistill.models import SCHEMES, draw_weights, model_name
from datadistill.pretraining.config import PoolConfig, TrajectoriesConfig
from datadistill.pretraining.facts import NetworkFacts
from datadistill.pretraining.pool import Networks, Pool, PoolFacts, load_pool, stacked_in_half
from datadistill.pretraining.trajectories import (
    FACTS_NAME,
    Trajectories,
    TrajectoryFacts,
    load_trajectories,
    read_expert,
    save_facts,
    write_expert,
)
from datadistill.training.accuracy import accuracy_of
from datadistill.training.fit import fit
from datadistill.utils import ranks
from datadistill.utils.errors import DamagedFileError, DatadistillError, Interrupted, RequestError, require, told
from datadistill.utils.fields import check_names, options_in, with_options
from datadistill.utils.files import (
    digest_of,
    gone,
    locked,
    read_json,
    read_tensors,
    refuse_links,
    write_json,
    write_tensors,
)
from datadistill.utils.interrupts import StopRequest
from datadistill.utils.runtime import resolve_device, stream, versions

Say: TypeAlias = Callable[[str], None]


@with_options(options_in(PoolConfig))
def make_pool(
    real: RealData | Datasets,
    out: str | Path,
    *,
    resume: bool = False,
    command: str = "",
    say: Say = lambda text: None,
    count: Callable[[], None] = lambda: None,
    **options: Any,
) -> Pool:
    """Train networks on a dataset, several at a time, and write them to one file.

    Every finished network is kept in a folder beside that file until all are done.

    Args:
        real: the dataset, or a training and a test `Dataset`; training sees its training split, and never
            the held-out slice.
        out: the file.
        resume: keep the networks that an earlier call with the same settings has finished.
        command: what to record as the command that made the pool.
        say: called with a sentence worth reading.
        count: called after each epoch of each network, `nets x epochs` times.
        **options: what the pool is to be, by the names of `PoolConfig`'s fields:

    Raises:
        RequestError: the request was wrong.
        TypeError: there is no option of that name.
        Interrupted: Ctrl-C, or another of `SIGNALS`; finished networks are kept.
        DatadistillError: training diverged, or a file could not be written.
    """
    check_names(options, options_in(PoolConfig), "a pool")
    config = PoolConfig(**options)
    start = load_pool(config.start) if isinstance(config.start, str | Path) else config.start
    total, reserved = config.shares(start)

    def size(weights: int) -> str:
        last, meanwhile = 2 * weights * total, 4 * weights * total
        sizes = f"{total} networks take {last / 1e6:.1f} MB, and {meanwhile / 1e6:.1f} MB more while they are trained"
        if not last + meanwhile <= config.max_gb * 1e9:
            raise RequestError(f"{sizes}, but {config.max_gb:g} GB are allowed: lower --nets or raise --max-gb")
        return f"{sizes}."

    real, network, known = _prepare(real, config, size, say)
    if start is not None:
        start.check_fits(network, model_name(config.model), real)
        known["scheme"] = start.facts.scheme
    digest = "" if start is None else start.digest
    facts = PoolFacts(**known, recipe=command, reserved=reserved, accuracies=(0.0,) * total, start=digest)
    out, starts = Path(out), None if start is None else start.networks
    parts = out.with_name(out.name + ".parts")
    maker = _Maker(real, network, facts, "network", out, parts, out, say, count, starts, epochs_kept=1)
    with maker.opened(resume, lambda: load_pool(out).facts) as check:
        if check is not None:
            maker.train_missing(check, lambda path: _read_part(path, network), _write_part)
            pool = _joined(maker, facts, config.test)
            if ranks.leads():
                pool.save(out)
                shutil.rmtree(parts, ignore_errors=True)
        ranks.wait_for([out])
    return load_pool(out)


@with_options(options_in(TrajectoriesConfig))
def make_trajectories(
    real: RealData | Datasets,
    out: str | Path,
    *,
    resume: bool = False,
    command: str = "",
    say: Say = lambda text: None,
    count: Callable[[], None] = lambda: None,
    **options: Any,
) -> Trajectories:
    """Train experts on a dataset, several at a time, and write the weights of every epoch into a folder.

    Args:
        real: the dataset, or a training and a test `Dataset`; training sees its training split, and never the
            held-out slice.
        out: the folder.
        resume: keep the experts that an earlier call with the same settings has finished.
        command: what to record as the command that made them.
        say: called with a sentence worth reading.
        count: called after each epoch of each expert, `experts x epochs` times.
        **options: what the trajectories are to be, by the names of `TrajectoriesConfig`'s fields:

    Raises:
        RequestError: the request was wrong.
        TypeError: there is no option of that name.
        Interrupted: Ctrl-C, or another of `SIGNALS`; finished experts are kept.
        DatadistillError: training diverged, or a file could not be written.
    """
    check_names(options, options_in(TrajectoriesConfig), "a set of trajectories")
    config = TrajectoriesConfig(**options)
    epochs, experts = config.training.epochs, config.experts

    def size(weights: int) -> str:
        total = 2 * weights * (epochs + 1) * experts
        if not total <= config.max_gb * 1e9:
            raise RequestError(
                f"the trajectories of {experts} experts take {total / 1e9:.3g} GB, but {config.max_gb:g} GB are "
                "allowed: lower --nets or --epochs, or raise --max-gb"
            )
        return f"{experts} experts, {epochs + 1} times each, take {total / 1e6:.1f} MB."

    real, network, known = _prepare(real, config, size, say)
    facts = TrajectoryFacts(**known, recipe=command, accuracies=(0.0,) * experts)
    out = Path(out)
    maker = _Maker(real, network, facts, "expert", out, out, out / FACTS_NAME, say, count)

    def write(path: Path, weights: Sequence[Weights], began: float) -> None:
        seconds, last = time.perf_counter() - began, Networks(stacked_in_half(weights[-1:])).to(maker.device)
        write_expert(path, weights, accuracy_of(network, last[0], real.held_out).correct, seconds)

    with maker.opened(resume, lambda: load_trajectories(out).facts) as check:
        if check is not None:
            maker.train_missing(check, lambda path: read_expert(path, epochs).check(), write)
            if ranks.leads():
                finished = [read_expert(path, epochs).facts for path in maker.files]
                facts = replace(
                    facts,
                    digests=tuple(expert.digest for expert in finished),
                    accuracies=tuple(expert.accuracy for expert in finished),
                    seconds=round(sum(expert.seconds for expert in finished), 3),
                )
                save_facts(out, facts)
                maker.config.unlink()
        ranks.wait_for([maker.whole])
    return load_trajectories(out)


def _prepare(
    real: RealData | Datasets,
    config: PoolConfig | TrajectoriesConfig,
    size: Callable[[int], str],
    say: Say,
) -> tuple[RealData, Network, dict[str, Any]]:
    """The dataset and the network on the device, and the facts of both; `size` refuses too many weights."""
    if config.batch_norm not in ("auto", "refused", "batch"):
        raise RequestError(
            f"the batch norm policy is {config.batch_norm}, but no running statistics are kept here: use batch"
        )
    on = resolve_device(config.device)
    real = as_real(real).to(on)
    network = network_for(config.model, real, on, config.batch_norm)
    for remark in network.remarks:
        say(remark)
    say(size(sum(weight.numel() for weight in network.module.parameters())))
    if on.type == "cpu":
        ranks.first_here(lambda: kernels.prepare(say))
    known = {
        "dataset": real.origin,
        "classes": real.classes,
        "normalization": real.normalization.by_channel,
        "zca": real.is_whitened,
        "image_shape": tuple(real.train.images.shape[1:]),
        "model": model_name(config.model),
        "scheme": SCHEMES.get(config.scheme).name,
        "batch_norm": network.batch_norm,
        "training": config.training,
        "seed": config.seed,
        "versions": versions(),
    }
    return real, network.with_operations("auto"), known


@dataclass(frozen=True, eq=False)
class _Maker:
    """Networks in the making, each of which has a file in a folder when it is finished.

    Attributes:
        real: the dataset, on the device.
        network: the architecture, on the device.
        facts: of the networks; results are not known yet.
        word: what one of them is called.
        out: where all of them go together.
        folder: where their files lie until then.
        whole: the file that is written last.
        say: called with a sentence worth reading.
        count: called after each epoch of each network.
        starts: the networks that are trained further, where they are not drawn.
        epochs_kept: of how many epochs, the last ones, weights are kept; None: of all, and those before the first.
    """

    real: RealData
    network: Network
    facts: NetworkFacts
    word: str
    out: Path
    folder: Path
    whole: Path
    say: Say
    count: Callable[[], None]
    starts: Networks | None = None
    epochs_kept: int | None = None
    _alone: threading.Lock = field(default_factory=threading.Lock)

    @property
    def device(self) -> torch.device:
        return self.real.train.images.device

    @property
    def config(self) -> Path:
        """File of what was asked for, as long as something is missing."""
        return self.folder / "config.json"

    @property
    def files(self) -> list[Path]:
        """Of all networks."""
        return [self.folder / f"{self.word}-{index:05d}.safetensors" for index in range(len(self.facts.accuracies))]

    @contextmanager
    def opened(self, resume: bool, load: Callable[[], NetworkFacts]) -> Iterator[Callable[[], None] | None]:
        """Make or check the folder, and hold it (`utils.files.locked`); rank 0 does so for all.

        Gives the function that sees whether it is still there; None where all is made already.

        Args:
            resume: go on with what is there.
            load: the facts of what is made already.

        Raises:
            RequestError: something else is in the way, or another process is at work.
        """
        with self._held(resume, load) if ranks.leads() else nullcontext(self._check) as check:
            is_made = ranks.from_first(lambda: check is None)
            if not is_made:
                ranks.wait_for([self.config])
            yield None if is_made else check

    def _check(self) -> None:
        """What ranks that do not hold the folder ask of it."""
        if not self.config.exists():
            raise gone(self.folder)

    @contextmanager
    def _held(self, resume: bool, load: Callable[[], NetworkFacts]) -> Iterator[Callable[[], None] | None]:
        if not self.out.name or self.out.name == "..":
            raise RequestError(f"there is something at {self.out} already: give another place with --out")
        refuse_links(self.folder, itself=self.folder != self.out)
        if resume and not self.folder.exists() and not self.out.exists():
            self.say(f"there is nothing of {self.out} yet: starting from the beginning.")
        if self._is_made(resume, load):
            yield None
            return
        with locked(self.folder) as check:
            # Another process may have finished between the look and the lock.
            made = self._is_made(resume, load)
            if not made:
                self._begin()
            yield None if made else check

    def _is_made(self, resume: bool, load: Callable[[], NetworkFacts]) -> bool:
        """Whether all is there already.

        Raises:
            RequestError: something else is.
        """
        if self.whole.exists() and not self.config.exists():
            if not resume or load().asked() != self.facts.asked():
                raise RequestError(f"{self.out} is there already: give another --out")
            self.say(f"{self.out} is finished already.")
            return True
        if self.config.exists() and not resume:
            raise RequestError(f"{self.folder} holds {self.word}s from before: add --resume to keep them, or remove it")
        if self.config.exists() or not self.folder.exists():
            return False
        if any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise RequestError(f"{self.folder} holds something else than {self.word}s: give another --out")
        return False

    def _begin(self) -> None:
        """Write down what is asked for, or compare it with what was.

        Raises:
            RequestError: they differ.
        """
        settings = self.facts.asked() | {"device": self.device.type}
        if not self.config.exists():
            write_json(self.config, settings)
        before = read_json(self.config)
        before = before if isinstance(before, dict) else {}
        for name in settings | before:
            there, value = before.get(name), settings.get(name)
            if there != value:
                raise RequestError(
                    f"the {self.word}s in {self.folder} have {name} {told(there)}, but {told(value)} is asked for"
                )

    def train_missing(
        self,
        check: Callable[[], None],
        read: Callable[[Path], object],
        write: Callable[[Path, Sequence[Weights], float], None],
    ) -> None:
        """Train the networks that are not finished yet.

        Args:
            check: raises an error once the folder has been removed.
            read: raises DatadistillError where a file is not whole.
            write: is given the file, the weights of the epochs that are kept, and when training began.
        """
        files = self.files

        def one(index: int) -> None:
            began = time.perf_counter()
            weights = self._train(index, stop)
            check()
            write(files[index], weights, began)

        with StopRequest() as stop:
            each_on_one_core(one, ranks.from_first(lambda: self._missing(read)), self.device)
        ranks.wait_for(files)

    def _missing(self, read: Callable[[Path], object]) -> list[int]:
        """The networks that are not finished; the epochs of the others are counted."""
        missing, total = list[int](), len(self.files)
        for index, path in enumerate(self.files):
            try:
                read(path)
            except DatadistillError as error:
                if path.exists():
                    self.say(f"{self.word} {index + 1} is trained again: {error}.")
                missing.append(index)
        if len(missing) < total:
            self.say(f"{total - len(missing)} of {total} {self.word}s are there already.")
        for _ in range((total - len(missing)) * self.facts.training.epochs):
            self.count()
        return missing

    def _train(self, index: int, stop: StopRequest) -> list[Weights]:
        """The weights of a network after the epochs that are kept, on the CPU."""
        epochs: deque[Weights] = deque(maxlen=self.epochs_kept)

        def count() -> None:
            with self._alone:
                self.count()
            if requested := ranks.stopped(stop.requested):
                what = f"interrupted; {self.word}s that are finished are kept"
                raise Interrupted(what, self.folder, requested)

        def keep(weights: Weights) -> None:
            epochs.append({name: weight.cpu() for name, weight in weights.items()})

        training, order = self.facts.training, stream(self.facts.seed, "expert", index, "order")
        fit(self.network, self._start(index), self.real.train, training, order, count, keep)
        if not all(bool(weight.isfinite().all()) for weight in epochs[-1].values()):
            raise DatadistillError(f"the weights of {self.word} {index + 1} are not finite: give a lower --rate")
        return list(epochs)

    def _start(self, index: int) -> Weights:
        """Initial weights of a network."""
        if self.starts is not None:
            return {name: weight.to(self.device) for name, weight in self.starts[index].items()}
        draw = stream(self.facts.seed, "expert", index, "start")
        with self.network.alone:
            return draw_weights(self.network.module, self.facts.scheme, draw)


def _write_part(path: Path, epochs: Sequence[Weights], began: float) -> None:
    """Keep a network of a pool, in full precision until all are finished."""
    seconds = str(time.perf_counter() - began)
    write_tensors(path, epochs[-1], {"seconds": seconds, "sha256": digest_of(epochs[-1], seconds)})


def _read_part(path: Path, network: Network) -> tuple[Weights, float]:
    """A finished network of a pool, and the seconds it took.

    Raises:
        DatadistillError: it is not there, or it is damaged.
    """
    weights, metadata = read_tensors(path)
    if metadata.get("sha256") != digest_of(weights, metadata.get("seconds", "")):
        raise DamagedFileError(f"{path} is damaged: its checksum differs")
    shapes = {name: (weight.shape, weight.dtype) for name, weight in network.module.named_parameters()}
    require(
        {name: (weight.shape, weight.dtype) for name, weight in weights.items()} == shapes
        and all(bool(weight.isfinite().all()) for weight in weights.values()),
        f"{path} is damaged: its weights are not those of this network",
    )
    try:
        seconds = float(metadata["seconds"])
    except (KeyError, ValueError):
        seconds = math.nan
    require(0 <= seconds < math.inf, f"{path} is damaged: it does not say how long it took")
    return weights, seconds


def _joined(maker: _Maker, facts: PoolFacts, test: bool) -> Pool:
    """A pool of networks that are finished: their weights are rounded, and what they are worth is measured."""
    parts, device = [_read_part(path, maker.network) for path in maker.files], maker.device
    exact = [{name: weight.to(device) for name, weight in weights.items()} for weights, _ in parts]
    stacked = stacked_in_half([weights for weights, _ in parts])
    rounded = Networks(stacked).to(device)

    def accuracies(networks: Networks | list[Weights], split: Split) -> tuple[float, ...]:
        def correct(index: int) -> float:
            return accuracy_of(maker.network, networks[index], split).correct

        return tuple(each_on_one_core(correct, range(len(networks)), device))

    facts = replace(
        facts,
        accuracies=accuracies(rounded, maker.real.held_out),
        unrounded=accuracies(exact, maker.real.held_out),
        test=accuracies(rounded, maker.real.test) if test else (),
        seconds=round(sum(seconds for _, seconds in parts), 3),
    )
    return Pool(facts, stacked)

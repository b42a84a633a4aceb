"""Planner: predicted memory and time of a hypergradient, and the engine's choices that follow from them.

Nothing is guessed from formulas for layers: one gradient, one second derivative and one piece of the real batch are
computed on random images, with every live tensor counted, and the whole is put together from these.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.engine.config import Engine, Execution, Storage
from datadistill.engine.differentiability import require_differentiable
from datadistill.engine.functional import Network, Weights, as_leaves, batch_gradient, pieces_of
from datadistill.engine.hypergradient import hypergradient, spacing_of
from datadistill.engine.memory import LiveBytes
from datadistill.engine.optimizers import Optimizer
from datadistill.engine.surrogate import kinks_of
from datadistill.engine.unroll import InnerStep
from datadistill.utils import ranks
from datadistill.utils.errors import RequestError

PIECE_BYTES = 8 << 20
"""Memory that a piece of the real batch may need on a CPU, if it has enough images: more no longer fits the cache."""

ENOUGH_IMAGES = 32
"""Fewer images than this in a piece of the real batch cost more in overhead than the cache gives."""

BIG_BYTES = 128 << 20
"""From this much memory on, a distilled batch is cut into pieces, which are shared out among cores."""

FEW_IMAGES = 10
"""Images in a piece of a distilled batch."""


@dataclass(frozen=True)
class Workload:
    """The computation of one outer step.

    Attributes:
        steps: inner steps T.
        images: distilled images per inner step.
        distilled: distilled images in all.
        classes: outputs of the network.
        networks: what an outer step works on side by side, each with memory of its own: networks, or classes.
        real: real images per outer step; 0 where the outer loss asks for none, only for other weights to compare.
        optimizer: of the inner loop.
        surrogate_width: as for `hypergradient`.
        window: the last steps that are differentiated, of a stretch that ends anywhere; 0: all of them.
        derivatives: how often the network is differentiated: 0 where the loss has none, 1 or 2.
        model: the network that does the work, by name; `same` is the one that is distilled for.
        parts: ranks that share the pieces of the real batch.
    """

    steps: int
    images: int
    distilled: int
    classes: int
    networks: int
    real: int
    optimizer: Optimizer
    surrogate_width: float = 0.0
    window: int = 0
    derivatives: int = 2
    model: str = "same"
    parts: int = 1

    def of_rank(self, count: int) -> "Workload":
        """What each of so many ranks does: some of the networks; of a single one, a part of the real batch."""
        if count == 1:
            return self
        if self.networks > 1:
            return replace(self, networks=-(-self.networks // count))
        return replace(self, parts=count) if self.derivatives > 1 and self.real else self

    def exchanged(self, count: int, image: int, weights: int, chunk: int) -> int:
        """Bytes that so many ranks give each other in an outer step.

        Args:
            count: of ranks.
            image: bytes of an image.
            weights: bytes of a network's weights.
            chunk: real images in a piece.
        """
        if count == 1:
            return 0
        if self.networks > 1:  # each network has derivatives of its own, of all images that it is trained on
            batches = min(self.steps, -(-self.distilled // self.images))
            return self.networks * batches * self.images * image
        return -(-self.real // chunk) * weights if self.derivatives > 1 and self.real > chunk > 0 else 0


@dataclass(frozen=True)
class Prediction:
    """Predicted cost of one outer step with an engine.

    Attributes:
        engine: with every choice made.
        peak_bytes: live tensors at the peak, above the dataset and the distilled data.
        seconds: for one outer step; 0 if it was not measured.
        kept_bytes: the part of the peak that grows with the number of steps.
    """

    engine: Engine
    peak_bytes: int
    seconds: float
    kept_bytes: int


@dataclass(frozen=True)
class _Cost:
    """Cost of a piece of work: live bytes at its peak, seconds."""

    peak: int
    seconds: float


def settle(network: Network, image: Float[Tensor, "1 c h w"], workload: Workload, engine: Engine) -> Engine:
    """Engine with every open choice made.

    The choices follow from memory alone, so that the same machine makes the same ones each time.

    Args:
        network: what is trained.
        image: any image, for its shape, type and device.
        workload: what an outer step asks for.
        engine: how, as far as it has been said.

    Raises:
        RequestError: the network cannot be differentiated as the engine asks.
    """
    device = image.device
    # What is differentiated once asks of the layers what a difference of two gradients does.
    asked = "reverse" if engine.hvp == "auto" else engine.hvp
    require_differentiable(network, image, workload.classes, asked if workload.derivatives > 1 else "difference")
    if engine.hvp == "difference" and (kinks := kinks_of(network, image)):
        raise RequestError(
            f"hvp difference is for smooth networks, but this one has {' and '.join(kinks)}, across whose kinks it "
            "is wrong by more than its own size: choose reverse"
        )
    if engine.hvp in ("forward", "difference") and workload.surrogate_width > 0:
        raise RequestError(
            f"surrogate_width {workload.surrogate_width:g} needs hvp reverse, but hvp is {engine.hvp}: "
            "choose reverse, or surrogate_width 0"
        )
    if engine.execution == "graph" and device.type != "cuda":
        raise RequestError("execution graph needs a CUDA device: choose eager")
    probe = _Probe(network, image, workload)
    workers = torch.get_num_threads() if device.type == "cpu" else 1
    if engine.hvp == "auto":
        engine = replace(engine, hvp="forward" if engine.execution == "compiled" else "reverse")
    if engine.execution == "auto":
        engine = replace(engine, execution="eager")
    if device.type == "cpu":
        alone = workload.networks < workers
        if engine.chunk == 0:
            fitting = max(ENOUGH_IMAGES, PIECE_BYTES // probe.real_image_bytes())
            engine = replace(engine, chunk=min(fitting, -(-workload.real // (workers if alone else 1))))
        if engine.inner_chunk == 0:
            big = workload.derivatives > 1 and probe.hvp(engine, workload.images).peak > BIG_BYTES
            engine = replace(engine, inner_chunk=min(FEW_IMAGES, workload.images) if big else workload.images)
    elif engine.chunk == 0 and workload.parts > 1 and engine.execution != "graph":
        engine = replace(engine, chunk=-(-workload.real // workload.parts))
    if engine.storage == "auto":
        engine = replace(engine, storage=_storage(probe, engine, memory_limit(engine, device)))
    return engine


def predict(network: Network, image: Float[Tensor, "1 c h w"], workload: Workload, engine: Engine) -> Prediction:
    """Prediction for an outer step, with the choices of `settle` and its arguments."""
    engine = settle(network, image, workload, engine)
    return _Probe(network, image, workload).prediction(engine, timed=True)


def memory_limit(engine: Engine, device: torch.device) -> int:
    """Bytes that may be used: what the engine says, else half of what the device has, by ranks that share it."""
    if engine.memory > 0:
        return int(engine.memory * 2**30)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 2
    limits = []
    with suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(ValueError, OSError):  # a container's
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=8 << 30) // 2 // ranks.count_here()


def cheaper(engine: Engine, workload: Workload) -> Engine | None:
    """The next choice that needs less memory, or None when there is none left."""
    if engine.storage == "full":
        return replace(engine, storage="recompute")
    if engine.storage in ("recompute", "offload"):
        return replace(engine, storage="checkpoint")
    inner, real = engine.inner_chunk or workload.images, engine.chunk or workload.real
    smaller = replace(engine, inner_chunk=max(1, inner // 2), chunk=max(1, real // 2))
    return smaller if smaller != engine else None


def _storage(probe: "_Probe", engine: Engine, limit: int) -> Storage:
    """The fastest storage that fits: graphs, positions, some of the positions."""
    on_gpu = probe.image.device.type == "cuda"
    candidates: list[Storage] = ["full"] if engine.can_keep_graphs else []
    candidates += ["recompute", "offload"] if on_gpu and engine.execution != "graph" else ["recompute"]
    for candidate in candidates:
        if probe.prediction(replace(engine, storage=candidate), timed=False).peak_bytes <= limit:
            return candidate
    return "checkpoint"


class _Probe:
    """Small pieces of an outer step, measured on random images."""

    def __init__(self, network: Network, image: Float[Tensor, "1 c h w"], workload: Workload) -> None:
        self.network, self.image, self.workload = network, image, workload
        self.weights = {name: p.detach().to(image.dtype) for name, p in network.module.named_parameters()}
        self.state = workload.optimizer.init(self.weights)

    @property
    def position_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for part in (self.weights, self.state) for t in part.values())

    @property
    def weight_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.weights.values())

    def _around_bytes(self) -> int:
        """Bytes held all through the step: the real batch, initial weights, and derivatives of each network."""
        workload = self.workload
        images = workload.real + (workload.networks + 2) * workload.distilled
        return images * self.image[0].numel() * self.image.element_size() + workload.networks * self.weight_bytes

    def steps(self, count: int, images: int) -> list[InnerStep]:
        draw = torch.Generator().manual_seed(0)
        shape = (images, *self.image.shape[1:])
        pixels = torch.randn(shape, generator=draw).to(self.image)
        labels = torch.zeros(images, dtype=torch.int64, device=self.image.device)
        return [InnerStep(pixels, labels, torch.tensor(1e-3).to(self.image), 0)] * count

    def real_image_bytes(self) -> int:
        """Bytes that a real image adds to the peak of a gradient."""
        small, large = (self._gradient(count, 0).peak for count in (2, 10))
        return max(1, (large - small) // 8)

    def hvp(self, engine: Engine, images: int, timed: bool = False) -> _Cost:
        """One step forward and back, with its position kept."""
        return self._walk(replace(engine, storage="recompute", inner_chunk=0), 1, images, timed)

    def prediction(self, engine: Engine, timed: bool) -> Prediction:
        workload = self.workload
        workers = torch.get_num_threads() if self.image.device.type == "cpu" else 1
        abreast = min(workload.networks, workers) if workload.networks >= workers else 1
        helpers = workers if abreast == 1 else 1
        inner = engine.inner_chunk or workload.images
        inner_pieces = len(pieces_of(self.network, workload.images, inner))
        real = engine.chunk or workload.real
        real_pieces = -(-len(pieces_of(self.network, workload.real, real)) // workload.parts)
        if self.network.couples_images:
            inner, real = workload.images, workload.real
        graphs = engine.storage == "full" or (
            engine.storage == "checkpoint" and inner_pieces == 1 and engine.can_keep_graphs
        )
        # What is captured is timed as if it ran eagerly, and holds its memory beside that of the step it is checked by.
        how: Execution = "eager" if engine.execution == "graph" else engine.execution
        walked = replace(engine, storage="full" if graphs else "recompute", inner_chunk=0, execution=how)
        one, two = (self._walk(walked, count, inner, timed) for count in (1, 2))
        outer = self._gradient(real, 0, timed) if real else _Cost(3 * self.weight_bytes, 0.0)
        kept = self._kept(engine, two.peak - one.peak, inner_pieces)
        # Pieces of a batch are added up: once for each worker, beside the piece at hand.
        sums = self.weight_bytes
        inner_peak = one.peak * min(helpers, inner_pieces) + kept
        inner_peak += 2 * sums * min(helpers, inner_pieces) * (inner_pieces > 1)
        # The outer loss is taken before a stretch between two checkpoints is walked again.
        then = -(-workload.steps // spacing_of(engine, workload.steps)) * self.position_bytes
        outer_peak = outer.peak * min(helpers, real_pieces) + (then if engine.storage == "checkpoint" else kept)
        outer_peak += sums * min(helpers, real_pieces) * (real_pieces > 1)
        seconds = 0.0
        if timed:
            seconds = self._seconds(engine, two.seconds - one.seconds, inner, inner_pieces, helpers)
            seconds += outer.seconds * real_pieces / min(helpers, real_pieces)
            seconds *= -(-workload.networks // abreast)
        peak = abreast * max(inner_peak, outer_peak) * (2 if engine.execution == "graph" else 1) + self._around_bytes()
        return Prediction(engine, int(peak), seconds, int(abreast * kept))

    def _kept(self, engine: Engine, graph_bytes: int, pieces: int) -> int:
        """Bytes that are kept besides the piece at hand, of batches in so many pieces."""
        count = self.workload.steps
        if self.workload.window:
            count = min(count, self.workload.window)
        if engine.storage == "full":
            return (count * pieces - 1) * graph_bytes
        if engine.storage == "checkpoint":
            spacing = spacing_of(engine, count)
            return -(-count // spacing) * self.position_bytes + (spacing - 1) * graph_bytes
        if engine.storage == "offload" and self.image.device.type != "cpu":
            return 0
        return (count - 1) * self.position_bytes

    def _seconds(self, engine: Engine, step: float, inner: int, pieces: int, helpers: int) -> float:
        """All inner steps: `step` is the time of one, forward and back, for one piece."""
        workload = self.workload
        gradient = self._gradient(inner, 0, timed=True).seconds
        rounds = pieces / min(helpers, pieces)
        count = workload.steps
        again = 0.0
        if engine.storage == "checkpoint":
            again = gradient * (1 - 1 / spacing_of(engine, count))
        if workload.window:
            differentiated = min(count, workload.window)
            return rounds * (differentiated * (step + again) + (count - differentiated) / 2 * gradient)
        return rounds * count * (step + again)

    def _walk(self, engine: Engine, count: int, images: int, timed: bool) -> _Cost:
        if self.workload.derivatives < 2:
            gradient = self._gradient(images, 0, timed)
            return _Cost(gradient.peak, count * gradient.seconds)

        def outer(last: Weights) -> tuple[Tensor, Weights]:
            return torch.zeros((), device=self.image.device), {name: torch.ones_like(w) for name, w in last.items()}

        steps = self.steps(count, images)

        def work() -> Any:
            workload = self.workload
            return hypergradient(
                self.network, workload.optimizer, self.weights, steps, outer, engine, workload.surrogate_width
            )

        return _measured(work, timed, self.image.device)

    def _gradient(self, images: int, chunk: int, timed: bool = False) -> _Cost:
        (step,) = self.steps(1, images)

        def work() -> Any:
            return batch_gradient(self.network, as_leaves(self.weights), step.images, step.labels, chunk)

        return _measured(work, timed, self.image.device)


def _measured(work: Callable[[], Any], timed: bool, device: torch.device) -> _Cost:
    with _one_thread(device):
        with LiveBytes() as memory:
            work()
        if not timed:
            return _Cost(memory.peak, 0.0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times = []
        for _ in range(5):
            began = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - began)
        return _Cost(memory.peak, sorted(times)[2])


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Probes run as a worker would, on one core, where their tensors can be counted."""
    threads = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)

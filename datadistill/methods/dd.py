"""Dataset Distillation: images and learning rates optimised through training.

Wang, Zhu, Torralba and Efros, "Dataset Distillation", arXiv 1811.10959 (2018): section 3.1 for the outer loss of one
network, section 3.2 for random initial weights, section 3.4 for several steps and epochs, algorithm 1 for all of it.

Where this differs from the authors' code:
    - the learning rates are kept positive by learning their logarithm (theirs: the inverse of softplus), which gives a
      rate of 0.01 and a rate of 1 steps of the same relative size;
    - real batches are class-balanced;
    - images can start from class means, cluster centres or real images as well as from noise;
    - labels can be learned with the images (Sucholutsky and Schonlau, "Soft-Label Dataset Distillation and Text Dataset
      Distillation", arXiv 1910.02551, section 3), and then there may be fewer images than classes. They are free
      numbers that start from 0 and 1;
    - the real images can be augmented.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from datadistill.data.augment import augmented, parse_augmentation
from datadistill.distilled import DistilledData
from datadistill.engine.cuda_graph import OuterLoss, outer_step
from datadistill.engine.functional import Weights, batch_gradient
from datadistill.engine.hypergradient import Hypergradient
from datadistill.engine.optimizers import SGD
from datadistill.engine.parallel import map_on_cores
from datadistill.engine.planner import Workload
from datadistill.engine.unroll import InnerStep, with_noise
from datadistill.methods.base import Context, Problem, State, Step, options_of
from datadistill.methods.initial_images import first_images
from datadistill.training.carried import own_steps
from datadistill.utils.errors import RequestError
from datadistill.utils.fields import Flag, check_numbers

MOST_STEPS = 100_000
_NORM, _NORM_MEMORY, _NORM_LEAP = "dd.norm", 0.99, 5.0

SCHEDULES: dict[str, Callable[[int], Float[Tensor, "t"]]] = {
    "constant": torch.ones,
    "falling": lambda steps: 1 - torch.arange(steps) / steps,
}
"""How rates go on from the first one: all the same, or on a straight line that would reach zero after the last."""


@dataclass(frozen=True)
class DD:
    """Hyper-parameters of dataset distillation; the defaults are the paper's and its code's.

    Attributes:
        steps: batches S that the distilled images are cut into, one per gradient step.
        epochs: how often the batches are walked, E; each of the S x E steps has a learning rate of its own.
        learning_rate: of the first step, at first.
        rates: how those of the other steps begin: `constant`, or `falling` on a straight line that would reach zero
            after the last. With falling ones training settles at its end and stays away from chaos
            (`docs/mnist-random-100.md`).
        labels: `hard` class indices, or `soft` ones that are learned too.
        images: what the images start from: `noise` (standard normal), `mean` (class means),
            `real` images, or `kmeans` (cluster centres of each class).
        augment: how the real images of an outer step are moved about, each by draws of its own: `none`, or parts such
            as `shift_scale_rotate_flip`. Distilled data then learns what holds for moved images too.
        batch: real images per outer step.
        batch_last: real images per outer step at the end; in between the size grows geometrically. 0: no growth.
        networks: networks per outer step with random initial weights; fixed ones need one.
        surrogate_width: width over which the jumps of ReLU's derivative count in the hypergradient; 0 leaves them out,
            as the authors do (`docs/method-dd.md` says why that hurts).
        network_clip: longest gradient allowed for the images of one network, in multiples of the running mean length
            over networks; a longer one is shrunk, and that of the rates with it. One network that is about to diverge
            then does not drown the others. 0 allows any.
        window: gradient steps that are differentiated, the last ones before a random end: an approximation for long
            training (Feng et al. 2023, section 3). 0: all of them, to the end.
    """

    steps: int = 1
    epochs: int = 3
    learning_rate: float = 0.02
    rates: Literal["constant", "falling"] = "constant"
    labels: Literal["hard", "soft"] = "hard"
    images: Literal["noise", "mean", "real", "kmeans"] = "noise"
    augment: str = "none"
    batch: int = 1024
    batch_last: int = 0
    networks: int = 4
    surrogate_width: float = field(default=0.0, metadata=Flag(was="kink_width").metadata)
    network_clip: float = 0.0
    window: int = 0

    def __post_init__(self) -> None:
        least = {"steps": 1, "epochs": 1, "batch": 1, "networks": 1, "batch_last": 0, "window": 0}
        check_numbers(self, least, no_less=["surrogate_width", "network_clip"])
        if self.steps * self.epochs > MOST_STEPS:
            raise RequestError(f"{self.steps} steps x {self.epochs} epochs are more than {MOST_STEPS:,} gradient steps")
        if not 1e-30 < self.learning_rate < 1e30:
            raise RequestError(f"the learning rate is {self.learning_rate}, but must be positive and finite")
        parse_augmentation(self.augment)

    @property
    def name(self) -> str:
        return "dd"

    def resolve(self, problem: Problem) -> "DD":
        """The method itself: nothing goes by the problem."""
        return self

    def init(self, problem: Problem, generator: torch.Generator) -> tuple[DistilledData, State]:
        """Images of every class for every step, hard labels, and equal learning rates."""
        self._check_count(problem)
        labels = problem.labels
        soft = _shared_classes(labels, problem.real.num_classes) if self.labels == "soft" else None
        device = problem.real.train.images.device
        distilled = DistilledData(
            images=first_images(self.images, problem, generator).to(device),
            labels=labels.to(device),
            batches=torch.arange(len(labels), device=device).view(self.steps, -1),
            learning_rates=(self.learning_rate * SCHEDULES[self.rates](self.steps * self.epochs)).to(device),
            provenance=problem.provenance("dd", options_of(self), own_steps(self.steps, self.epochs)),
            initial_weights=problem.starts.fixed,
            soft_labels=None if soft is None else soft.to(device),
        )
        return distilled, {}

    def _check_count(self, problem: Problem) -> None:
        """Refuse numbers of images that cannot be had, or not be cut into equal steps."""
        for name, what in (("batch_last", "real batches of one size"), ("window", "the same steps each time")):
            if getattr(self, name) and problem.engine.execution == "graph":
                raise RequestError(f"execution graph needs {what}, but {name} is {getattr(self, name)}: leave it out")
        ipc, classes = problem.ipc, problem.real.num_classes
        if isinstance(ipc, tuple):
            problem.real.check_ipc(ipc)
            if problem.count % self.steps:
                raise RequestError(
                    f"{problem.count} images cannot be cut into {self.steps} equal steps: ask for others"
                )
            return
        problem.real.check_ipc(math.ceil(ipc) if self.labels == "soft" else ipc)
        if problem.count < 1 or abs(problem.count - ipc * classes) > 1e-6:
            raise RequestError(f"{ipc:g} images per class of {classes} classes are not a whole number of images")
        if (self.labels == "hard" and ipc % self.steps) or problem.count % self.steps:
            raise RequestError(
                f"{ipc:g} images per class cannot be cut into {self.steps} equal steps: make ipc a multiple of steps"
            )

    def step(self, distilled: DistilledData, state: State, context: Context, generator: torch.Generator) -> Step:
        """The outer loss on one real batch, averaged over networks, and its derivative through training."""
        problem, engine = context.problem, context.engine
        train = problem.real.train
        real = problem.with_targets(train.take(train.draw(self._batch_size(context), generator)))
        real = replace(real, images=augmented(real.images, parse_augmentation(self.augment), generator))
        starts = problem.starts.sample(self.workload(problem).networks, generator)
        steps, first = distilled.inner_steps(), 0
        if 0 < self.window < len(steps):
            # The outer loss is taken at a random step, so that every step is differentiated now and then.
            steps = steps[: int(torch.randint(self.window, len(steps) + 1, (), generator=generator))]
            first = len(steps) - self.window
        noisy = [with_noise(problem.network, steps, generator) for _ in starts]

        def outer(last: Weights, images: Tensor, labels: Tensor) -> tuple[Float[Tensor, ""], Weights]:
            precision = engine.real_precision
            return batch_gradient(
                problem.network, last, images, labels, engine.chunk, precision=precision, is_large=True
            )

        def through(one: tuple[Weights, list[InnerStep]]) -> Hypergradient:
            loss = OuterLoss(outer, [real.images, real.labels])
            return outer_step(problem.network, SGD(), *one, loss, engine, self.surrogate_width, first)

        results = map_on_cores(through, list(zip(starts, noisy, strict=True)), problem.device)
        if self.network_clip:
            results, state = _clipped(results, state, self.network_clip)
        return Step(torch.stack([result.loss for result in results]).mean(), _collect(distilled, results), state)

    def workload(self, problem: Problem) -> Workload:
        """Workload of an outer step."""
        return Workload(
            steps=self.steps * self.epochs,
            images=problem.count // self.steps,
            distilled=problem.count,
            classes=problem.real.num_classes,
            networks=1 if problem.starts.fixed is not None else self.networks,
            real=max(self.batch, self.batch_last),
            optimizer=SGD(),
            surrogate_width=self.surrogate_width,
            window=self.window,
        )

    def _batch_size(self, context: Context) -> int:
        if not self.batch_last:
            return self.batch
        return round(self.batch * math.exp(context.progress * math.log(self.batch_last / self.batch)))


def _shared_classes(labels: Int64[Tensor, "n"], num_classes: int) -> Float[Tensor, "n {num_classes}"]:
    """Initial soft labels: one-hot; with fewer images than classes, each image is shared by several."""
    count, shares = len(labels), torch.zeros(len(labels), num_classes)
    shares[torch.arange(count), labels] = 1.0
    for label in range(count, num_classes):
        shares[label % count, label] = 1.0
    return shares / shares.sum(1, keepdim=True)


def _clipped(results: list[Hypergradient], state: State, most: float) -> tuple[list[Hypergradient], State]:
    """Gradient clipping by network at `most` times the running mean norm; one that is not finite counts as 0."""
    norms = [float(torch.stack([g.norm() for g in result.images.values()]).norm()) for result in results]
    finite = [norm for norm in norms if math.isfinite(norm)]
    usual = float(state[_NORM]) if _NORM in state else sum(finite) / max(1, len(finite))
    clipped = []
    for result, norm in zip(results, norms, strict=True):
        if not math.isfinite(norm):
            factor = 0.0
        else:
            factor = min(1.0, most * usual / norm) if norm > 0 else 1.0
            usual = _NORM_MEMORY * usual + (1 - _NORM_MEMORY) * min(norm, _NORM_LEAP * usual)
        clipped.append(_scaled(result, factor) if factor < 1 else result)
    return clipped, {**state, _NORM: torch.tensor(usual, dtype=torch.float64)}


def _scaled(result: Hypergradient, factor: float) -> Hypergradient:
    def scaled(gradient: Tensor) -> Tensor:
        return gradient * factor if factor else torch.zeros_like(gradient)

    return replace(
        result,
        images={batch: scaled(gradient) for batch, gradient in result.images.items()},
        labels={batch: scaled(gradient) for batch, gradient in result.labels.items()},
        rates=scaled(result.rates),
    )


def _collect(distilled: DistilledData, results: list[Hypergradient]) -> dict[str, Tensor]:
    """Gradients by variable: the mean over networks, summed over all uses of a batch."""
    assert distilled.learning_rates is not None

    def total(like: Tensor, parts: Iterable[dict[int, Tensor]]) -> Tensor:
        summed = torch.zeros_like(like)
        for part in parts:
            for batch, gradient in part.items():
                summed.index_add_(0, distilled.batches[batch], gradient)
        return summed / len(results)

    rates = torch.zeros_like(distilled.learning_rates)
    for result in results:
        rates[: len(result.rates)] += result.rates / len(results)
    gradients = {"images": total(distilled.images, (r.images for r in results)), "learning_rates": rates}
    if distilled.soft_labels is not None:
        gradients["soft_labels"] = total(distilled.soft_labels, (r.labels for r in results))
    return gradients

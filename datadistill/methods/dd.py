"""Dataset Distillation: images and learning rates optimised through training.

Wang, Zhu, Torralba and Efros, "Dataset Distillation", arXiv 1811.10959 (2018): section 3.1 for the outer loss of one
network, section 3.2 for random initial weights, section 3.4 for several steps and epochs, algorithm 1 for all of it.

Where this differs from the authors' code:
    - the learning rates are kept positive by learning their logarithm (theirs: the inverse of softplus), which gives a
      rate of 0.01 and a rate of 1 steps of the same relative size;
    - real batches are class-balanced;
    - images can start from class means or real images as well as from noise.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.distilled import DistilledData
from datadistill.errors import RequestError
from datadistill.inner.functional import Weights, batch_gradient
from datadistill.inner.hypergradient import Hypergradient, hypergradient
from datadistill.inner.optimizers import SGD
from datadistill.inner.parallel import map_on_cores
from datadistill.methods.base import Gradients, MethodState, Outcome, Problem, options_of

MOST_STEPS = 100_000


@dataclass(frozen=True)
class DD:
    """Hyper-parameters of dataset distillation; the defaults are the paper's and its code's.

    Attributes:
        steps: batches S that the distilled images are cut into, one per gradient step.
        epochs: how often the batches are walked, E; each of the S x E steps has a learning rate of its own.
        learning_rate: of every step at first.
        images: what the images start from: `noise` (standard normal), `mean` (class means) or `real`.
        batch: real images per outer step.
        batch_last: real images per outer step at the end; in between the size grows geometrically. 0: no growth.
        networks: networks per outer step with random initial weights; fixed ones need one.
        storage: what the engine keeps between its two walks: `auto`, `full` or `recompute`.
        chunk: real images that are differentiated at a time.
        kink_width: width over which the jumps of ReLU's derivative count in the hypergradient; 0 leaves them out, as
            the authors do (`docs/method-dd.md` says why that hurts).
    """

    steps: int = 1
    epochs: int = 3
    learning_rate: float = 0.02
    images: Literal["noise", "mean", "real"] = "noise"
    batch: int = 1024
    batch_last: int = 0
    networks: int = 4
    storage: Literal["auto", "full", "recompute"] = "auto"
    chunk: int = 1024
    kink_width: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "batch", "networks", "chunk"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.steps * self.epochs > MOST_STEPS:
            raise RequestError(f"{self.steps} steps x {self.epochs} epochs are more than {MOST_STEPS:,} gradient steps")
        if not 1e-30 < self.learning_rate < 1e30:
            raise RequestError(f"the learning rate is {self.learning_rate}, but must be positive and finite")
        if not 0 <= self.kink_width < float("inf"):
            raise RequestError(f"kink_width is {self.kink_width}, but must be finite and not negative")
        if self.batch_last < 0:
            raise RequestError(f"batch_last is {self.batch_last}, but must not be negative")

    def start(self, problem: Problem, generator: torch.Generator) -> DistilledData:
        """Images of every class for every step, hard labels, and equal learning rates."""
        problem.real.check_ipc(problem.ipc)
        if problem.ipc % self.steps:
            raise RequestError(
                f"{problem.ipc} images per class cannot be cut into {self.steps} equal steps: "
                f"make ipc a multiple of steps"
            )
        labels = torch.arange(problem.real.num_classes).repeat(problem.ipc)
        device = problem.real.train.images.device
        inner = {
            "optimizer": "sgd",
            "steps": self.steps,
            "epochs": self.epochs,
            "augment": None,
            "loss": "cross-entropy",
        }
        return DistilledData(
            images=_first_images(self.images, problem, labels, generator).to(device),
            labels=labels.to(device),
            batches=torch.arange(len(labels), device=device).view(self.steps, -1),
            learning_rates=torch.full((self.steps * self.epochs,), self.learning_rate, device=device),
            provenance=problem.provenance("dd", options_of(self), inner),
            initial_weights=problem.starts.fixed,
        )

    def gradient(
        self,
        distilled: DistilledData,
        problem: Problem,
        state: MethodState,
        generator: torch.Generator,
        progress: float,
    ) -> Outcome:
        """The outer loss on one real batch, averaged over networks, and its derivative through training."""
        train = problem.real.train
        real = train.take(train.draw(self._batch_size(progress), generator))
        count = 1 if problem.starts.fixed is not None else self.networks
        steps = distilled.inner_steps()
        storage = self.storage
        if storage == "auto":
            # Short walks are fastest with their graphs kept; long ones must not need memory for them.
            storage = "full" if len(steps) <= 30 else "recompute"

        def through(weights: Weights) -> Hypergradient:
            # A functional call lends the module its weights for a moment, so no two threads may share one.
            network = problem.network.twin()

            def outer(last: Weights) -> tuple[Float[Tensor, ""], Weights]:
                return batch_gradient(network, last, real.images, real.labels, self.chunk)

            return hypergradient(network, SGD(), weights, steps, outer, storage, self.kink_width)

        results = map_on_cores(through, problem.starts.sample(count, generator), problem.device)
        return Outcome(
            loss=torch.stack([result.loss for result in results]).mean(),
            gradients=_collect(distilled, results),
            state=state,
        )

    def _batch_size(self, progress: float) -> int:
        if not self.batch_last:
            return self.batch
        return round(self.batch * math.exp(progress * math.log(self.batch_last / self.batch)))


def _first_images(kind: str, problem: Problem, labels: Tensor, generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    train = problem.real.train
    shape = (len(labels), *train.images.shape[1:])
    if kind == "noise":
        return torch.randn(shape, generator=generator)
    images = torch.empty(shape)
    for label in range(problem.real.num_classes):
        members = train.of_class(label)
        mine = labels == label
        if kind == "real":
            chosen = members[torch.randperm(len(members), generator=generator)[: problem.ipc]]
            images[mine] = train.take(chosen).images.cpu()
        else:
            images[mine] = train.take(members).images.mean(0).cpu()
    return images


def _collect(distilled: DistilledData, results: list[Hypergradient]) -> Gradients:
    """The mean over networks, with what several epochs say of one image added up."""
    images = torch.zeros_like(distilled.images)
    for result in results:
        for t, gradient in enumerate(result.images):
            images.index_add_(0, distilled.batches[t % len(distilled.batches)], gradient)
    rates = torch.stack([result.rates for result in results]).mean(0)
    return Gradients(images / len(results), rates)

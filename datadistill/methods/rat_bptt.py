"""RaT-BPTT: backpropagation through a window of long training, placed at random.

Feng, Vedantam and Kempe, "Embarrassingly Simple Dataset Distillation" (ICLR 2024), section 4: a network is trained on
the distilled images for a random number of steps, and only the last W of them are differentiated. Every part of the
training is inside the window now and then, while no gradient is long enough to explode. Training is by Adam, whose
moments are carried from before the window into it, and are differentiated through inside it.

Where this differs from the authors' code:
    - the window is placed anew in each outer step, theirs in each epoch of ten;
    - the batches of training are walks over all images in shuffled order, theirs are drawn for each class;
    - the real images of the outer loss are as they are, since those that a network is tested on are; theirs are changed
      like the distilled ones;
    - images may start from real ones, and a narrower network may be trained than the one that the result is for;
    - networks are trained on the result for a number of steps that it says; theirs for the best of four
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.data.augment import parse_augmentation
from datadistill.distilled import DistilledData
from datadistill.engine.cuda_graph import OuterLoss, outer_step
from datadistill.engine.functional import Weights, batch_gradient
from datadistill.engine.hypergradient import Hypergradient
from datadistill.engine.optimizers import Adam
from datadistill.engine.parallel import map_on_cores
from datadistill.engine.planner import Workload
from datadistill.engine.unroll import InnerStep, with_noise
from datadistill.methods.base import Context, Problem, State, Step, options_of
from datadistill.methods.initial_images import shuffled_batches
from datadistill.methods.judging import judged_by_protocol, with_soft_labels
from datadistill.training.carried import inner_of
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.errors import RequestError
from datadistill.utils.fields import check_numbers


@dataclass(frozen=True)
class RaTBPTT:
    """Hyper-parameters of random truncated backpropagation; the defaults are the authors' for CIFAR-10, 10 per class.

    Attributes:
        inner_steps: gradient steps T on the distilled images.
        window: the last steps W before the outer loss, which are differentiated; 0: all of them.
        placed: where the window lies: at `random` among the T steps, or at their end (`last`), as the authors have it
            for CIFAR-100 with one image per class.
        learning_rate: of Adam, on the distilled images; it is not learned.
        inner_batch: distilled images per gradient step, in shuffled order; 0 takes all of them.
        labels: `hard` class indices, or `soft` ones that are learned.
        images: what the images start from: `noise` (standard normal), `mean` (class means), `real` images, or `kmeans`
            (cluster centres).
        augment: how the images of a step are changed: one of these parts for a batch, each image by draws of its own;
            `none` for none. Networks are trained on the result with it too.
        matched_on: the network that is trained, by name, such as a narrower and so faster one of the same family;
            `same` is the one that the result is for.
        trained_for: gradient steps T' of the network that is trained on the result; 0: `inner_steps`.
        trained_at: the learning rate then; 0: `learning_rate`. Wide networks want a lower one than narrow ones.
        batch: real images per outer step.
        networks: fresh networks per outer step.
    """

    inner_steps: int = 200
    window: int = 60
    placed: Literal["random", "last"] = "random"
    learning_rate: float = 0.001
    inner_batch: int = 0
    labels: Literal["hard", "soft"] = "hard"
    images: Literal["noise", "mean", "real", "kmeans"] = "noise"
    augment: str = "flip_rotate"
    matched_on: str = "same"
    trained_for: int = 0
    trained_at: float = 0.0
    batch: int = 5000
    networks: int = 1

    def __post_init__(self) -> None:
        least = {"inner_steps": 1, "window": 0, "inner_batch": 0, "trained_for": 0, "batch": 1, "networks": 1}
        check_numbers(self, least, positive=["learning_rate"], no_less=["trained_at"])
        if self.window > self.inner_steps:
            raise RequestError(f"a window of {self.window} steps does not fit in {self.inner_steps} inner steps")
        parse_augmentation(self.augment)

    @property
    def name(self) -> str:
        return "rat_bptt"

    def resolve(self, problem: Problem) -> "RaTBPTT":
        """Method with every 0 said, and `inner_batch` of no more images than there are."""
        return replace(
            self,
            window=self.window or self.inner_steps,
            inner_batch=min(self.inner_batch or problem.count, problem.count),
            trained_for=self.trained_for or self.inner_steps,
            trained_at=self.trained_at or self.learning_rate,
        )

    @property
    def training(self) -> TrainRecipe:
        """Training recipe of the result, of a method with every 0 said: the training that is differentiated here."""
        return TrainRecipe(
            steps=self.trained_for,
            lr=self.trained_at,
            batch=self.inner_batch,
            optimizer="adam",
            schedule="constant",
            augment=self.augment,
        )

    def init(self, problem: Problem, generator: torch.Generator) -> tuple[DistilledData, State]:
        """Images of every class; hard labels, or soft ones that start as those.

        Raises:
            RequestError: a graph cannot be captured of a window that moves.
        """
        if self.placed == "random" and problem.engine.execution == "graph":
            raise RequestError("execution graph needs the same steps each time: choose placed last, or leave it out")
        problem.with_model(self.matched_on)  # refused before a run, not in it
        data = judged_by_protocol(problem, self.images, generator, self.name, options_of(self), self.augment)
        data = data.noted(inner=problem.provenance(self.name, options_of(self), inner_of(self.training)).inner)
        return with_soft_labels(data) if self.labels == "soft" else data, {}

    def workload(self, problem: Problem) -> Workload:
        """Workload of an outer step."""
        return Workload(
            steps=self.inner_steps,
            images=self.inner_batch,
            distilled=problem.count,
            classes=problem.real.num_classes,
            networks=1 if problem.starts.fixed is not None else self.networks,
            real=self.batch,
            optimizer=Adam(),
            window=self.window,
            model=self.matched_on,
        )

    def step(self, distilled: DistilledData, state: State, context: Context, generator: torch.Generator) -> Step:
        """The outer loss on one real batch after training that ends at random, and its derivative in the window."""
        problem, engine = context.problem.with_model(self.matched_on), context.engine
        train = problem.real.train
        real = problem.with_targets(train.take(train.draw(self.batch, generator)))
        latest = self.inner_steps - self.window
        first = latest if self.placed == "last" else int(torch.randint(latest + 1, (), generator=generator))
        batches = shuffled_batches(problem.count, self.inner_batch, first + self.window, generator)
        batches = [batch.to(problem.device) for batch in batches]
        network = problem.with_augmentation(self.augment)
        starts = problem.starts.sample(self.workload(problem).networks, generator)
        steps = [with_noise(network, self._steps(distilled, batches, first), generator) for _ in starts]

        def outer(last: Weights, images: Tensor, labels: Tensor) -> tuple[Float[Tensor, ""], Weights]:
            precision = engine.real_precision
            return batch_gradient(
                problem.network, last, images, labels, engine.chunk, precision=precision, is_large=True
            )

        def through(one: tuple[Weights, list[InnerStep]]) -> Hypergradient:
            return outer_step(network, Adam(), *one, OuterLoss(outer, [real.images, real.labels]), engine, first=first)

        results = map_on_cores(through, list(zip(starts, steps, strict=True)), problem.device)
        gradients = {"images": torch.zeros_like(distilled.images)}
        if distilled.soft_labels is not None:
            gradients["soft_labels"] = torch.zeros_like(distilled.soft_labels)
        for result in results:
            for name, parts in (("images", result.images), ("soft_labels", result.labels)):
                for number, gradient in parts.items():
                    gradients[name].index_add_(0, batches[number], gradient / len(results))
        return Step(torch.stack([result.loss for result in results]).mean(), gradients, state)

    def _steps(self, distilled: DistilledData, batches: list[Tensor], first: int) -> list[InnerStep]:
        rate = torch.tensor(self.learning_rate).to(distilled.images)
        data = [(distilled.images[batch], distilled.targets[batch]) for batch in batches]
        numbers = [t % len(batches) for t in range(first + self.window)]
        return [InnerStep(*data[number], rate, number) for number in numbers]

"""Dataset Condensation by distribution matching, DM.

Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023: equation 6. Under a fresh random network
and one random transformation, the mean feature of the distilled images of each class is brought nearer to the mean
feature of real images of that class. There is no inner loop and no second derivative; the network is never trained.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from datadistill.data.augment import Transform, parse_augmentation, siamese
from datadistill.distilled import DistilledData
from datadistill.engine.functional import Network, Weights, pieces_of
from datadistill.engine.optimizers import SGD
from datadistill.engine.parallel import map_on_cores
from datadistill.engine.planner import Workload
from datadistill.methods.base import Context, Problem, State, Step, options_of
from datadistill.methods.dc import DSA_STRATEGY
from datadistill.methods.initial_images import some_of_class
from datadistill.methods.judging import judged_by_protocol, training_augmentation
from datadistill.utils.errors import RequestError
from datadistill.utils.fields import check_numbers


@dataclass(frozen=True)
class DM:
    """Hyper-parameters of distribution matching; the defaults are the paper's.

    Attributes:
        images: what the images start from: `real` images, `noise`, `mean` (class means), or `kmeans` (cluster centres).
        augment: the transformations of which one is drawn for each class and outer step, with `_` between them, or
            `none`.
        trained_with: the transformations of which one is drawn for each batch when a network is trained on the result;
            `same` takes those of `augment`.
        trained_epochs: for how many epochs, then; 0: as many as the field, 300, and 1,000 with augmentation.
        matched_on: the network whose features are matched, by name, such as a narrower and so faster one of the same
            family; `same` is the one that the result is for.
        batch: real images per class and outer step.
    """

    images: Literal["noise", "mean", "real", "kmeans"] = "real"
    augment: str = DSA_STRATEGY
    trained_with: str = "same"
    trained_epochs: int = 0
    matched_on: str = "same"
    batch: int = 256

    def __post_init__(self) -> None:
        check_numbers(self, {"batch": 1, "trained_epochs": 0})
        training_augmentation(self.trained_with, self.augment)
        parse_augmentation(self.augment)

    @property
    def name(self) -> str:
        return "dm"

    def resolve(self, problem: Problem) -> "DM":
        """The method itself: nothing goes by the problem."""
        return self

    def init(self, problem: Problem, generator: torch.Generator) -> tuple[DistilledData, State]:
        """Images of every class and hard labels; the learning rates are the protocol's.

        Raises:
            RequestError: under an attack, or a class has fewer images than are asked for.
        """
        if problem.attack is not None:
            raise RequestError("method dm compares features, not answers: an attack needs method dd, dc or dsa")
        _ = problem.with_model(self.matched_on).features  # refused before a run, not in it
        training = training_augmentation(self.trained_with, self.augment), self.trained_epochs
        return judged_by_protocol(problem, self.images, generator, self.name, options_of(self), *training), {}

    def workload(self, problem: Problem) -> Workload:
        """Workload of an outer step, at most: features need less than the gradient of a loss."""
        return Workload(
            steps=1,
            images=-(-problem.count // problem.real.num_classes),
            distilled=problem.count,
            classes=problem.real.num_classes,
            networks=problem.real.num_classes,
            real=self.batch,
            optimizer=SGD(),
            derivatives=1,
            model=self.matched_on,
        )

    def step(self, distilled: DistilledData, state: State, context: Context, generator: torch.Generator) -> Step:
        """Distribution-matching loss (equation 6): squared distances between mean features, and its derivative."""
        problem, engine = context.problem.with_model(self.matched_on), context.engine
        (weights,) = problem.starts.sample(1, generator)
        train, parts = problem.real.train, parse_augmentation(self.augment)
        draws = []
        for label in range(problem.real.num_classes):
            chosen = some_of_class(problem, label, self.batch, generator)
            draws.append((label, chosen, siamese(parts, train.images.shape[-1], generator)))

        def of_class(draw: tuple[int, Tensor, Transform]) -> tuple[Tensor, Tensor]:
            label, chosen, change = draw
            target = mean_feature(problem.features, weights, change(train.take(chosen).images), engine.chunk)
            leaf = distilled.images[distilled.labels == label].detach().requires_grad_()
            with torch.enable_grad():
                feature = problem.features.logits(weights, change(leaf)).mean(0)
                loss = ((feature - target) ** 2).sum()
            (gradient,) = torch.autograd.grad(loss, [leaf])
            return loss.detach(), gradient

        losses, gradients = zip(*map_on_cores(of_class, draws, problem.device), strict=True)
        images = torch.zeros_like(distilled.images)
        for (label, _, _), gradient in zip(draws, gradients, strict=True):
            images[distilled.labels == label] = gradient
        return Step(torch.stack(losses).sum(), {"images": images}, state)


@torch.no_grad()
def mean_feature(network: Network, weights: Weights, images: Tensor, chunk: int) -> Tensor:
    """Mean of a network's outputs over images, in pieces.

    Args:
        network: without its last layer.
        weights: of the whole.
        images: [n, c, h, w].
        chunk: images in a piece; 0: all at once.
    """
    pieces = pieces_of(network, len(images), chunk)
    return torch.stack([network.logits(weights, images[piece]).sum(0) for piece in pieces]).sum(0) / len(images)

"""Trajectory-guided distribution matching: mean features under networks in training, and what these take images for.

Ran, Pu, Liu, Bi and Xiao, "TGDD: Trajectory Guided Dataset Distillation with Balanced Distribution" (AAAI 2026): in
each outer step the features of real and distilled images are compared as in distribution matching (`dm`), but under an
expert as it was after some epoch of its training on real images; and the distilled images are to be recognised by an
expert of the same epoch or some later one. The first says what a class looks like at every stage of training, the
second keeps classes apart. No derivative passes through training, and a network need be differentiable only once.

Where this differs from the paper, as far as is known of it:
    - one stored image is one image; theirs holds four of half the size;
    - experts never see the held-out slice of the training split, by which a run is judged;
    - experts can be another network than the one that the result is for, such as a narrower one;
    - classes count alike however many images they have, in both parts of the loss;
    - the outer loop is Adam.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from datadistill.data.augment import Transform, parse_augmentation, siamese
from datadistill.distilled import DistilledData
from datadistill.engine.functional import Weights
from datadistill.engine.optimizers import SGD
from datadistill.engine.parallel import map_on_cores
from datadistill.engine.planner import Workload
from datadistill.methods.base import Context, Problem, State, Step, experts_of, options_of
from datadistill.methods.dc import DSA_STRATEGY
from datadistill.methods.dm import mean_feature
from datadistill.methods.initial_images import some_of_class
from datadistill.methods.judging import judged_by_protocol, training_augmentation
from datadistill.utils.errors import RequestError
from datadistill.utils.fields import check_numbers


@dataclass(frozen=True)
class TGDD:
    """Hyper-parameters of trajectory-guided distribution matching.

    Attributes:
        recognition: the share of the loss that experts have of recognising the distilled images; 0 leaves it out.
        ahead: epochs, at most, by which the expert that recognises may be ahead of the one whose features are matched.
        images: what the images start from: `real` images, `noise`, `mean` (class means), or `kmeans` (cluster centres).
        augment: the transformations of which one is drawn for each class and outer step, with `_` between them, or
            `none`.
        trained_with: the transformations of which one is drawn for each batch when a network is trained on the result;
            `same` takes those of `augment`.
        matched_on: the network of the experts, by name, such as a narrower and so faster one of the same family; `same`
            is the one that the result is for.
        batch: real images per class and outer step.
    """

    recognition: float = 2.5
    ahead: int = 6
    images: Literal["noise", "mean", "real", "kmeans"] = "real"
    augment: str = DSA_STRATEGY
    trained_with: str = "same"
    matched_on: str = "same"
    batch: int = 64

    def __post_init__(self) -> None:
        check_numbers(self, {"ahead": 0, "batch": 1}, no_less=["recognition"])
        training_augmentation(self.trained_with, self.augment)
        parse_augmentation(self.augment)

    @property
    def name(self) -> str:
        return "tgdd"

    def resolve(self, problem: Problem) -> "TGDD":
        """The method itself: nothing goes by the problem."""
        return self

    def init(self, problem: Problem, generator: torch.Generator) -> tuple[DistilledData, State]:
        """Images of every class and hard labels; the learning rates are the protocol's.

        Raises:
            RequestError: there are no experts, or not of this network; under an attack; a class has fewer images than
                are asked for.
        """
        if problem.attack is not None:
            raise RequestError("method tgdd compares features, not answers: an attack needs method dd, dc or dsa")
        matched = problem.with_model(self.matched_on)
        experts_of(problem, self.name).check_fits(matched.network, matched.model, problem.real)
        _ = matched.features  # refused before a run, not in it
        augment = training_augmentation(self.trained_with, self.augment)
        return judged_by_protocol(problem, self.images, generator, self.name, options_of(self), augment), {}

    def workload(self, problem: Problem) -> Workload:
        """Workload of an outer step, at most: the images of a class pass through two networks."""
        return Workload(
            steps=1,
            images=2 * -(-problem.count // problem.real.num_classes),
            distilled=problem.count,
            classes=problem.real.num_classes,
            networks=problem.real.num_classes,
            real=self.batch,
            optimizer=SGD(),
            derivatives=1,
            model=self.matched_on,
        )

    def step(self, distilled: DistilledData, state: State, context: Context, generator: torch.Generator) -> Step:
        """Squared distances between mean features, and cross-entropy under a later expert; their derivative."""
        problem, engine = context.problem.with_model(self.matched_on), context.engine
        matched, judge = self._experts(context.problem, distilled.images, generator)
        train, parts = problem.real.train, parse_augmentation(self.augment)
        draws = []
        for label in range(problem.real.num_classes):
            chosen = some_of_class(problem, label, self.batch, generator)
            draws.append((label, chosen, siamese(parts, train.images.shape[-1], generator)))

        def of_class(draw: tuple[int, Tensor, Transform]) -> _OfClass:
            label, chosen, change = draw
            target = mean_feature(problem.features, matched, change(train.take(chosen).images), engine.chunk)
            mine = distilled.labels == label
            leaf = distilled.images[mine].detach().requires_grad_()
            with torch.enable_grad():
                seen = change(leaf)
                feature = problem.features.logits(matched, seen).mean(0)
                distance = (feature - target).square().sum()
                answers = problem.network.logits(judge, seen)
                taken = F.cross_entropy(answers, distilled.labels[mine])
                (gradient,) = torch.autograd.grad(distance + self.recognition * taken, [leaf])
            return _OfClass(distance.detach(), taken.detach(), gradient)

        found = map_on_cores(of_class, draws, problem.device)
        images = torch.zeros_like(distilled.images)
        for (label, _, _), one in zip(draws, found, strict=True):
            images[distilled.labels == label] = one.gradient
        distance, taken = (torch.stack(terms).sum() for terms in list(zip(*found, strict=True))[:2])
        logs = {"distance": float(distance), "recognition": float(taken) / len(found)}
        return Step(distance + self.recognition * taken, {"images": images}, state, logs)

    def _experts(self, problem: Problem, like: Tensor, generator: torch.Generator) -> tuple[Weights, Weights]:
        """The weights under which features are matched, and those that recognise."""
        trajectories = experts_of(problem, self.name)
        one, other = torch.randint(len(trajectories), (2,), generator=generator).tolist()
        epoch = int(torch.randint(trajectories.epochs + 1, (), generator=generator))
        later = min(trajectories.epochs, epoch + int(torch.randint(self.ahead + 1, (), generator=generator)))
        matched, judge = (
            {name: weight.to(like) for name, weight in trajectories.experts[expert].weights(at).items()}
            for expert, at in ((one, epoch), (other, max(1, later)))
        )
        return matched, judge


class _OfClass(NamedTuple):
    """What the images of a class have of the loss, and its derivative."""

    distance: Tensor
    recognition: Tensor
    gradient: Tensor

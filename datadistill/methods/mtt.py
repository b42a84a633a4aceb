"""Matching training trajectories: images on which a few steps lead where many steps on real images lead.

Cazenavette, Wang, Torralba, Efros and Zhu, "Dataset Distillation by Matching Training Trajectories" (CVPR 2022),
section 3.2, equation 2 and algorithm 1. Experts are trained beforehand (`make_trajectories`); an outer step puts a
student at an expert's weights of a random epoch, trains it on the distilled images, and asks how far it ends from the
expert's weights some epochs later.

`derivative="tesla"` is the approximation of Cui, Wang, Si and Hsieh, "Scaling Up Dataset Distillation to ImageNet-1K
with Constant Memory" (ICML 2023), section 3: every step's gradient is differentiated at the weights it was taken at, as
if these did not depend on the steps before.

Where this differs from the authors' code:
    - the derivative is exact whatever the engine stores; theirs keeps the graphs of all steps at once;
    - the learning rate is positive, by learning its logarithm; theirs may turn negative;
    - experts' weights are kept in half precision and read from the disk as they are needed;
    - experts never see the held-out slice of the training split, by which a run is judged; theirs is judged on test
      images;
    - experts and students can be another network than the one that the result is for;
    - labels can be learned too, as in Guo, Wang, Cazenavette, Li, Zhang and You, "Towards Lossless Dataset Distillation
      via Difficulty-Aligned Trajectory Matching" (ICLR 2024). Theirs are a softmax and start from what experts say;
      here they are free numbers that start as the hard labels.
"""

import itertools
import math
from collections import deque
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.data.augment import parse_augmentation
from datadistill.distilled import DistilledData
from datadistill.engine.config import Engine
from datadistill.engine.cuda_graph import OuterLoss, outer_step
from datadistill.engine.functional import Network, Weights
from datadistill.engine.hypergradient import Hypergradient, hypergradient
from datadistill.engine.optimizers import SGD
from datadistill.engine.planner import Workload
from datadistill.engine.unroll import InnerStep, walk, with_noise
from datadistill.methods.base import Context, Problem, State, Step, options_of
from datadistill.methods.dc import DSA_STRATEGY
from datadistill.methods.initial_images import shuffled_batches
from datadistill.methods.judging import judged_by_protocol, training_augmentation, with_soft_labels
from datadistill.pretraining.trajectories import Trajectories
from datadistill.training.carried import TAKES_LEARNED
from datadistill.utils.errors import RequestError
from datadistill.utils.fields import check_numbers


class Setting(NamedTuple):
    """The authors' settings for a number of images per class of CIFAR-10.

    Attributes:
        ipc: images per class.
        student_steps: N.
        last_start: epoch of the expert. Theirs are 2, 20 and 40, before which their code stops.
        learning_rate: of the student, at first.
        lr: of the images.
        lr_lr: theirs (1e-7, and 1e-5 from ten images on), divided by the square of the first learning rate:
            here its logarithm is learned.
    """

    ipc: float
    student_steps: int
    last_start: int
    learning_rate: float
    lr: float
    lr_lr: float


CIFAR_10 = (
    Setting(1.0, 50, 1, 0.01, 100.0, 1e-3),
    Setting(10.0, 30, 19, 0.001, 100.0, 10.0),
    Setting(50.0, 30, 39, 0.001, 1000.0, 10.0),
)


@dataclass(frozen=True)
class MTT:
    """Hyper-parameters of trajectory matching; the defaults are the authors' for CIFAR-10.

    Attributes:
        student_steps: gradient steps N on the distilled images in an outer step. 0: by the number of images per class,
            50 for 1, 30 for 10 and 50; in between, on a line over its logarithm.
        expert_epochs: epochs M of the expert that the student is to match.
        max_start_epoch: last epoch of the expert at which a student starts. -1: by the number of images per class, 1
            for 1, 19 for 10 and 39 for 50, in between likewise, and no more than the experts have.
        learning_rate: of the student, at first; it is learned. 0: by the number of images per class, 0.01 for 1 and
            0.001 for 10 and 50, in between likewise.
        inner_batch: distilled images per gradient step, in shuffled order; 0 takes all of them.
        images: what the images start from: `real` images, `noise`, `mean` (class means), or `kmeans` (cluster centres).
        labels: `hard` class indices, or `soft` ones that are learned too. They start as the hard ones and need not add
            up to one: what an image is worth in a step is learned with them.
        augment: how distilled images are changed in each step: one of these parts for the batch, each image by draws of
            its own; `none` for none. As the experts were trained, as a rule.
        trained_with: the transformations of which one is drawn for each batch when a network is trained on the result;
            `same` takes those of `augment`.
        trained_epochs: for how many epochs, then; 0: as many as the field, 300, and 1,000 with augmentation.
        matched_on: the network of the experts and of the students, by name, such as a narrower and so faster one of the
            same family; `same` is the one that the result is for.
        trained_at: learning rate at which networks are trained on the result by protocol `dc`; 0 takes the one that was
            learned, as the authors do. The student's few steps are plain, those of the protocol are many and with
            momentum: what the images bear there may be less.
        derivative: `exact` through all steps, or `tesla`, an approximation that leaves out what a step does to later
            gradients.
    """

    student_steps: int = 0
    expert_epochs: int = 2
    max_start_epoch: int = -1
    learning_rate: float = 0.0
    inner_batch: int = 0
    images: Literal["noise", "mean", "real", "kmeans"] = "real"
    labels: Literal["hard", "soft"] = "hard"
    augment: str = DSA_STRATEGY
    trained_with: str = "same"
    trained_epochs: int = 0
    matched_on: str = "same"
    trained_at: float = 0.0
    derivative: Literal["exact", "tesla"] = "exact"

    def __post_init__(self) -> None:
        least = {"student_steps": 0, "expert_epochs": 1, "max_start_epoch": -1, "inner_batch": 0, "trained_epochs": 0}
        check_numbers(self, least, no_less=["learning_rate", "trained_at"])
        if self.derivative not in ("exact", "tesla"):
            raise RequestError(f"the derivative is {self.derivative}, but must be exact or tesla")
        training_augmentation(self.trained_with, self.augment)
        parse_augmentation(self.augment)

    @property
    def name(self) -> str:
        return "mtt"

    def resolve(self, problem: Problem) -> "MTT":
        """Method with everything chosen that goes by the number of images per class.

        Raises:
            RequestError: the experts were trained for fewer epochs than are asked for.
        """
        epochs = _trajectories(problem).epochs
        asked = settings_for(problem.count / problem.real.num_classes)
        last = max(0, min(asked.last_start, epochs - self.expert_epochs))
        chosen = replace(
            self,
            student_steps=self.student_steps or asked.student_steps,
            max_start_epoch=last if self.max_start_epoch < 0 else self.max_start_epoch,
            learning_rate=self.learning_rate or asked.learning_rate,
        )
        if chosen.max_start_epoch + self.expert_epochs > epochs:
            raise RequestError(
                f"{self.expert_epochs} expert epochs from epoch {chosen.max_start_epoch} on are asked for, but the "
                f"experts were trained for {epochs}"
            )
        return chosen

    def init(self, problem: Problem, generator: torch.Generator) -> tuple[DistilledData, State]:
        """Images of every class with their labels and one learning rate.

        Raises:
            RequestError: initial weights, experts, augmentation or the engine do not fit the method.
        """
        if problem.kind != "random-init":
            raise RequestError(
                f"method mtt is for networks that start untrained, but the initial weights are {problem.kind}: "
                "choose --weights random-init"
            )
        matched = problem.with_model(self.matched_on)
        _trajectories(problem).check_fits(matched.network, matched.model, problem.real)
        forward = problem.engine.hvp == "forward" or problem.engine.execution == "compiled"
        if forward and any(change.moves for part in parse_augmentation(self.augment) for change in part):
            raise RequestError(
                f"hvp forward cannot differentiate images that are moved, but augment is {self.augment}: choose "
                "hvp reverse, or parts such as color_cutout"
            )
        if self.derivative == "tesla" and problem.engine.execution == "graph":
            raise RequestError(
                "derivative tesla is taken step by step, and execution graph is of whole steps: leave it out"
            )
        if problem.attack is not None:
            raise RequestError("method mtt learns what experts learned: an attack needs method dd")
        training = training_augmentation(self.trained_with, self.augment), self.trained_epochs
        data = judged_by_protocol(problem, self.images, generator, self.name, options_of(self), *training)
        rates = torch.tensor([self.learning_rate], device=problem.device)
        inner = data.provenance.inner
        if self.trained_at > 0:
            inner = inner | {"rate": self.trained_at, TAKES_LEARNED: False}
        data = replace(data.noted(inner=inner), learning_rates=rates)
        return (data if self.labels == "hard" else with_soft_labels(data)), {}

    def step(self, distilled: DistilledData, state: State, context: Context, generator: torch.Generator) -> Step:
        """Trajectory-matching loss, normalised by the expert's displacement (equation 2), and its derivative."""
        assert distilled.learning_rates is not None
        problem, trajectories = context.problem.with_model(self.matched_on), _trajectories(context.problem)
        expert = trajectories.experts[int(torch.randint(len(trajectories), (), generator=generator))]
        epoch = int(torch.randint(self.max_start_epoch + 1, (), generator=generator))
        start, target = (
            {name: weight.to(distilled.images) for name, weight in expert.weights(t).items()}
            for t in (epoch, epoch + self.expert_epochs)
        )
        network = problem.with_augmentation(self.augment)
        batches = shuffled_batches(problem.count, self.inner_batch, self.student_steps, generator)
        data = {
            number: (distilled.images[batch], distilled.targets[batch])
            for number, batch in enumerate([batch.to(problem.device) for batch in batches])
        }
        rate = distilled.learning_rates[0]
        numbers = [t % len(batches) for t in range(self.student_steps)]
        steps = with_noise(network, [InnerStep(*data[n], rate, n) for n in numbers], generator)
        through = outer_step if self.derivative == "exact" else _tesla
        outer = OuterLoss(_distance, [*start.values(), *target.values()])
        found = through(network, SGD(), start, steps, outer, context.engine)
        gradients = {"images": torch.zeros_like(distilled.images), "learning_rates": found.rates.sum()[None]}
        if distilled.soft_labels is not None:
            gradients["soft_labels"] = torch.zeros_like(distilled.soft_labels)
        for name, parts in (("images", found.images), ("soft_labels", found.labels)):
            for number, slope in parts.items():
                gradients[name].index_add_(0, batches[number].to(slope.device), slope)
        return Step(found.loss, gradients, state)

    def workload(self, problem: Problem) -> Workload:
        """Workload of an outer step."""
        return Workload(
            steps=self.student_steps,
            images=min(self.inner_batch or problem.count, problem.count),
            distilled=problem.count,
            classes=problem.real.num_classes,
            networks=1,
            real=0,
            optimizer=SGD(),
            model=self.matched_on,
        )


def settings_for(ipc: float) -> Setting:
    """The authors' settings, those for CIFAR-10, for any number of images per class.

    Between two of them on a line over the logarithm of the number (rates: their logarithms too), which is a guess of
    ours; beyond them, the nearest.
    """
    for few, many in itertools.pairwise(CIFAR_10):
        if ipc <= many.ipc:
            share = math.log(max(ipc, few.ipc) / few.ipc) / math.log(many.ipc / few.ipc)
            steps, last = (round(a + share * (b - a)) for a, b in zip(few[1:3], many[1:3], strict=True))
            rates = (a * (b / a) ** share for a, b in zip(few[3:], many[3:], strict=True))
            return Setting(ipc, steps, last, *rates)
    return CIFAR_10[-1]._replace(ipc=ipc)


def _trajectories(problem: Problem) -> Trajectories:
    if problem.trajectories is None:
        raise RequestError(
            "method mtt needs expert trajectories: make them with `datadistill pretrain --trajectories` and give their "
            "folder with --trajectories"
        )
    return problem.trajectories


def _distance(last: Weights, *ends: Tensor) -> tuple[Float[Tensor, ""], Weights]:
    """Trajectory-matching loss (equation 2), and its gradient with respect to the student's weights.

    Args:
        last: the student's weights.
        ends: the expert's, all at the start and then all at the end, in the same order.
    """
    start, target = ends[: len(last)], dict(zip(last, ends[len(last) :], strict=True))
    way = torch.stack([(t - s).square().sum() for s, t in zip(start, target.values(), strict=True)]).sum()
    apart = {name: weight - target[name] for name, weight in last.items()}
    loss = torch.stack([difference.square().sum() for difference in apart.values()]).sum() / way
    return loss, {name: 2 * difference / way for name, difference in apart.items()}


def _tesla(
    network: Network,
    optimizer: SGD,
    weights: Weights,
    steps: list[InnerStep],
    outer: OuterLoss,
    engine: Engine,
) -> Hypergradient:
    """Hypergradient of TESLA: that of each step on its own, with v as it is at the end (Cui et al. 2023).

    The last weights are start - rate * sum of gradients. If every gradient depended on its own images alone, the
    derivative would be this one, and each step needs its own graph only.
    """
    (last,) = deque(walk(network, optimizer, weights, steps, engine.inner_chunk), maxlen=1)
    loss, v = outer(last)
    images, labels, rates = dict[int, Tensor](), dict[int, Tensor](), list[Tensor]()
    here = replace(engine, storage="recompute")
    for step in steps:
        following: list[Weights] = []

        def at_the_end(found: Weights, following: list[Weights] = following) -> tuple[Tensor, Weights]:
            following.append(found)
            return loss, v

        found = hypergradient(network, optimizer, weights, [step], at_the_end, here)
        (weights,) = following
        for sums, parts in ((images, found.images), (labels, found.labels)):
            for batch, slope in parts.items():
                sums[batch] = sums[batch].add_(slope) if batch in sums else slope
        rates.append(found.rates)
    return Hypergradient(loss, images, labels, torch.cat(rates))

"""Dataset Condensation by gradient matching, DC; and with differentiable siamese augmentation, DSA.

Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021: algorithm 1, equations 9 and 10 for
the loss and the distance. Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021:
the same with one random transformation, shared by the real and the distilled images of a class, before each matching.

A network is trained on the distilled images; before it starts, and between parts of its training, the gradient
that the distilled images of each class give it is brought nearer to the one that real images of that class give it. No
derivative passes through training, so an outer step costs one second derivative.

Where this differs from the authors' code:
    - how often a network is matched, and how long it is trained in between, is known to them for 1, 10, 20, 30, 40 and
      50 images per class; other numbers are interpolated here;
    - several classes can be matched together;
    - gradients can be matched on another network than the one that the result is for;
    - the best data are chosen on held-out training data, theirs is the last.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.data.augment import Transform, parse_augmentation, siamese
from datadistill.data.real import Split
from datadistill.distilled import DistilledData
from datadistill.engine.config import Engine
from datadistill.engine.functional import Network, Weights, as_leaves, batch_gradient
from datadistill.engine.optimizers import SGD
from datadistill.engine.parallel import map_on_cores
from datadistill.engine.planner import Workload
from datadistill.methods.base import Context, Problem, State, Step, options_of
from datadistill.methods.initial_images import some_of_class
from datadistill.methods.judging import judged_by_protocol, training_augmentation
from datadistill.training.fit import fit
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.fields import check_numbers

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""By images per class: how often one network is matched, and epochs of training in between (the authors' code)."""

_DONE, _WEIGHTS = "dc.done", "dc.weights"


@dataclass(frozen=True)
class DC:
    """Hyper-parameters of gradient matching; the defaults are those of DC, and with `augment` it is DSA.

    Attributes:
        images: what the images start from: `noise`, `mean` (class means), `real` images, or `kmeans` (cluster centres).
        augment: the transformations of which one is drawn for each matching, with `_` between them; `none` is DC.
        trained_with: the transformations of which one is drawn for each batch when a network is trained on the result;
            `same` takes those of `augment`. The authors of DC judge MNIST with some and everything else without.
        trained_epochs: for how many epochs, then; 0: as many as the field, 300, and 1,000 with augmentation.
        matched_on: the network whose gradients are matched, by name, such as a narrower and so faster one of the same
            family; `same` is the one that the result is for.
        matches: outer steps for which one network is used; 0 takes as many as the authors for these images per class.
        inner_epochs: of training on the distilled images between two of them; 0 as `matches`.
        learning_rate: of that training.
        inner_batch: distilled images per step of that training.
        batch: real images per class and matching.
        together: classes whose gradients are matched as one.
    """

    images: Literal["noise", "mean", "real", "kmeans"] = "noise"
    augment: str = "none"
    trained_with: str = "same"
    trained_epochs: int = 0
    matched_on: str = "same"
    matches: int = 0
    inner_epochs: int = 0
    learning_rate: float = 0.01
    inner_batch: int = 256
    batch: int = 256
    together: int = 1

    def __post_init__(self) -> None:
        least = {"inner_batch": 1, "batch": 1, "together": 1, "matches": 0, "inner_epochs": 0, "trained_epochs": 0}
        check_numbers(self, least, positive=["learning_rate"])
        parse_augmentation(self.augment)
        training_augmentation(self.trained_with, self.augment)

    @property
    def name(self) -> str:
        """`dc`, or `dsa` with augmentation."""
        return "dc" if not parse_augmentation(self.augment) else "dsa"

    def resolve(self, problem: Problem) -> "DC":
        """Method with `matches` and `inner_epochs` by the number of images per class."""
        matches, epochs = loops_for(problem.count / problem.real.num_classes)
        return replace(self, matches=self.matches or matches, inner_epochs=self.inner_epochs or epochs)

    def init(self, problem: Problem, generator: torch.Generator) -> tuple[DistilledData, State]:
        """Images of every class and hard labels; the learning rates are the protocol's."""
        problem.with_model(self.matched_on)  # refused before a run, not in it
        training = training_augmentation(self.trained_with, self.augment), self.trained_epochs
        return judged_by_protocol(problem, self.images, generator, self.name, options_of(self), *training), {}

    def workload(self, problem: Problem) -> Workload:
        """Workload of an outer step; each group of classes counts as one network."""
        groups = math.ceil(problem.real.num_classes / self.together)
        return Workload(
            steps=1,
            images=math.ceil(problem.count / groups),
            distilled=problem.count,
            classes=problem.real.num_classes,
            networks=groups,
            real=self.batch * self.together,
            optimizer=SGD(),
            model=self.matched_on,
        )

    def step(self, distilled: DistilledData, state: State, context: Context, generator: torch.Generator) -> Step:
        """Gradient-matching loss (DC, equation 9), summed over all classes, and its derivative."""
        problem, engine = context.problem.with_model(self.matched_on), context.engine
        weights, done = self._network(distilled, problem, state, generator)
        pairs = [self._pair(distilled, problem, group, generator) for group in self._groups(problem)]

        def of_pair(pair: _Pair) -> _Matched:
            return match(problem.network, weights, pair, distilled.images[pair.indices], engine)

        results = map_on_cores(of_pair, pairs, problem.device)
        images = torch.zeros_like(distilled.images)
        for pair, result in zip(pairs, results, strict=True):
            images[pair.indices] = result.gradient
        loss = torch.stack([result.loss for result in results]).sum()
        return Step(loss, {"images": images}, {_WEIGHTS: weights, _DONE: torch.tensor(done + 1)})

    def _network(
        self, distilled: DistilledData, problem: Problem, state: State, generator: torch.Generator
    ) -> tuple[Weights, int]:
        """Network to match gradients on, the last one trained further or a new one; and how often it was matched."""
        done = int(state.get(_DONE, torch.tensor(self.matches)))
        if done >= self.matches:
            return problem.starts.sample(1, generator)[0], 0
        recipe = TrainRecipe(
            self.inner_epochs, self.learning_rate, self.inner_batch, "sgd", schedule="constant", augment=self.augment
        )
        return fit(problem.network, state[_WEIGHTS], distilled, recipe, generator), done

    def _groups(self, problem: Problem) -> list[range]:
        classes = problem.real.num_classes
        return [range(first, min(first + self.together, classes)) for first in range(0, classes, self.together)]

    def _pair(self, distilled: DistilledData, problem: Problem, group: range, generator: torch.Generator) -> "_Pair":
        chosen = torch.cat([some_of_class(problem, label, self.batch, generator) for label in group])
        change = siamese(parse_augmentation(self.augment), distilled.images.shape[-1], generator)
        real = problem.with_targets(problem.real.train.take(chosen))
        mine = torch.isin(distilled.labels, torch.tensor(list(group), device=distilled.labels.device))
        indices = torch.nonzero(mine).flatten()
        return _Pair(replace(real, images=change(real.images)), indices, distilled.labels[indices], change)


class _Pair(NamedTuple):
    """Real and distilled images of the same classes, under one augmentation.

    Attributes:
        real: augmented already.
        indices: of the distilled images.
        labels: of the distilled images.
        change: the augmentation.
    """

    real: Split
    indices: Tensor
    labels: Tensor
    change: Transform


class _Matched(NamedTuple):
    """A distance and its derivative with respect to the distilled images."""

    loss: Float[Tensor, ""]
    gradient: Float[Tensor, "n c h w"]


def match(
    network: Network, weights: Weights, pair: _Pair, images: Float[Tensor, "n c h w"], engine: Engine
) -> _Matched:
    """Gradient-matching loss of a group of classes, and its derivative with respect to the distilled images.

    Args:
        network: whose gradients are matched.
        weights: its weights.
        pair: real images, and the labels and augmentation of the distilled ones.
        images: the distilled images, [n, c, h, w].
        engine: how.
    """
    real = pair.real
    _, target = batch_gradient(
        network, weights, real.images, real.labels, engine.chunk, precision=engine.real_precision, is_large=True
    )
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        _, mine = network.gradient(as_leaves(weights), pair.change(leaf), pair.labels, create_graph=True)
        loss = distance(mine, target)
    (gradient,) = torch.autograd.grad(loss, [leaf])
    return _Matched(loss.detach(), gradient)


def distance(one: Weights, other: Weights) -> Float[Tensor, ""]:
    """Cosine distance between two gradients, summed over output units and layers (DC, equation 10).

    Biases and the weights of normalisation count for nothing, as in the authors' code.
    """
    terms = []
    for name, gradient in one.items():
        if gradient.dim() > 1:
            mine, theirs = gradient.flatten(1), other[name].flatten(1)
            lengths = mine.norm(dim=1) * theirs.norm(dim=1)
            terms.append((1 - (mine * theirs).sum(1) / (lengths + 1e-6)).sum())
    return torch.stack(terms).sum()


def loops_for(ipc: float) -> tuple[int, int]:
    """`LOOPS` for any number of images per class: on straight lines between those known, and as for 50 above."""
    known = sorted(LOOPS)
    if ipc >= known[-1]:
        return LOOPS[known[-1]]
    above = next(one for one in known if one > ipc)
    below = max((one for one in known if one <= ipc), default=above)
    share = 0.0 if above == below else (ipc - below) / (above - below)
    matches, epochs = (
        round((1 - share) * low + share * high) for low, high in zip(LOOPS[below], LOOPS[above], strict=True)
    )
    return matches, epochs


DSA_STRATEGY = "color_crop_cutout_flip_scale_rotate"
"""Of which one is drawn (DSA, section 4.1); the authors leave `flip` out for digits."""

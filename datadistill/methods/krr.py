"""KRR: kernel ridge regression on the features of partly trained networks, in the place of an inner loop.

Zhou, Nezhadarya and Ba, "Dataset Distillation using Neural Feature Regression" (FRePo, NeurIPS 2022), section 3. Loo,
Hasani, Lechner and Rus, "Dataset Distillation with Convexified Implicit Gradients" (RCIG, ICML 2023), whose outer loss
is cross-entropy. A network's body is held fixed, and its head is the ridge regression of the labels on the features of
the distilled images, which has a closed form; the outer loss is that of a real batch. So no derivative passes through
training, and an outer step costs one gradient of the distilled images. The bodies are those of a few networks kept
beside the distilled data, each trained on these a little after it was used, and drawn anew when it is old.

Where this differs from the authors' code:
    - the temperature of the cross-entropy is the best one for each real batch; RCIG learns one;
    - the features of a real batch can be used for several outer steps, as long as their network stays as it is;
    - the age at which a network is drawn anew is drawn too, so that ages are mixed from the start;
    - soft labels are not negative, so that networks can be trained on them by cross-entropy too; for ridge regression
      their centre, 1 / classes, is taken away;
    - networks are trained by cross-entropy, as the field judges, or by squared error, as both papers do;
    - labels are not held apart by a margin, and images are not doubled by their mirror images;
    - the outer loop is Adam; theirs are LAMB and AdaBelief.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from datadistill.data.augment import one_of, parse_augmentation
from datadistill.distilled import DistilledData
from datadistill.engine.functional import batch_gradient, pieces_of
from datadistill.engine.losses import Loss
from datadistill.engine.optimizers import SGD, Adam
from datadistill.engine.planner import Workload
from datadistill.methods.base import Context, Problem, State, Step, options_of
from datadistill.methods.initial_images import shuffled_batches
from datadistill.methods.judging import judged_by_protocol, with_soft_labels
from datadistill.training.carried import inner_of
from datadistill.training.fit import PIECE
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.errors import RequestError
from datadistill.utils.fields import check_numbers

_MOMENTS = ("first", "second")
_MOST = 1e3
"""The largest factor of answers in a cross-entropy: a batch without an error asks for an infinite one."""


@dataclass(frozen=True)
class KRR:
    """Hyper-parameters of kernel ridge regression.

    Attributes:
        loss: of the ridge regression's answers to a real batch: `mse`, or `cross-entropy` at the best temperature
            (with hard labels).
        ridge: the penalty, in multiples of the mean diagonal entry of the kernel matrix.
        bodies: networks that are kept, of which one at random is used at a time.
        max_age: most gradient steps that a network is trained for before it is drawn anew; how many is drawn uniformly
            for each. 0 uses fresh networks alone.
        body_steps: gradient steps on the distilled images that a network is trained for after it was used.
        reuse: outer steps for which one network and the features of one real batch are used.
        body_loss: by which networks are trained on the distilled images, here and when they are judged: `cross-entropy`
            or `mse`.
        learning_rate: of Adam, on the distilled images; it is not learned.
        inner_batch: distilled images per gradient step, in shuffled order; 0 takes all of them.
        labels: `hard` class indices, or `soft` ones that are learned.
        images: what the images start from: `noise` (standard normal), `mean` (class means), `real` images, or `kmeans`
            (cluster centres).
        augment: how distilled images are changed: one of these parts for a batch, each image by draws of its own;
            `none` for none. Networks are trained with it too when they are judged.
        matched_on: the network whose features are used, by name, such as a narrower and so faster one of the same
            family; `same` is the one that the result is for.
        batch: real images per outer step.
    """

    loss: Literal["mse", "cross-entropy"] = "mse"
    ridge: float = 1e-6
    bodies: int = 8
    max_age: int = 100
    body_steps: int = 5
    reuse: int = 2
    body_loss: Literal["cross-entropy", "mse"] = "cross-entropy"
    learning_rate: float = 0.001
    inner_batch: int = 256
    labels: Literal["hard", "soft"] = "hard"
    images: Literal["noise", "mean", "real", "kmeans"] = "real"
    augment: str = "none"
    matched_on: str = "same"
    batch: int = 256

    def __post_init__(self) -> None:
        least = {"bodies": 1, "max_age": 0, "body_steps": 1, "reuse": 1, "inner_batch": 0, "batch": 1}
        check_numbers(self, least, positive=["ridge", "learning_rate"])
        if self.labels == "soft" and self.loss == "cross-entropy":
            raise RequestError(
                "labels are soft and the loss is cross-entropy, which at the best temperature does not say how large "
                "labels should be: choose loss mse, or labels hard"
            )
        parse_augmentation(self.augment)

    @property
    def name(self) -> str:
        return "krr"

    def resolve(self, problem: Problem) -> "KRR":
        """Method with `inner_batch` of no more images than there are."""
        return replace(self, inner_batch=min(self.inner_batch or problem.count, problem.count))

    def init(self, problem: Problem, generator: torch.Generator) -> tuple[DistilledData, State]:
        """Images of every class; hard labels, or soft ones that start as those. The first step draws the bodies."""
        _ = problem.with_model(self.matched_on).features  # refused before a run, not in it
        data = judged_by_protocol(problem, self.images, generator, self.name, options_of(self), self.augment)
        recipe = TrainRecipe(1000, 0.001, 500, loss=self.body_loss, augment=self.augment)
        data = replace(data, provenance=problem.provenance(self.name, options_of(self), inner_of(recipe)))
        return with_soft_labels(data) if self.labels == "soft" else data, {}

    def workload(self, problem: Problem) -> Workload:
        """Workload of an outer step, at most."""
        return Workload(
            steps=1,
            images=problem.count,
            distilled=problem.count,
            classes=problem.real.num_classes,
            networks=1,
            real=self.batch,
            optimizer=SGD(),
            derivatives=1,
            model=self.matched_on,
        )

    def step(self, distilled: DistilledData, state: State, context: Context, generator: torch.Generator) -> Step:
        """The outer loss of ridge regression on one network's features, and its derivative."""
        problem = context.problem.with_model(self.matched_on)
        bodies = list(state["bodies"]) if state else [self._fresh(problem, generator) for _ in range(self.bodies)]
        visit = state.get("visit") or self._visit(bodies, context, generator)
        number = int(visit["body"])
        leaves = [distilled.images.detach().requires_grad_()]
        labels = _by_class(distilled).detach()
        if distilled.soft_labels is not None:
            leaves.append(labels.requires_grad_())
        with torch.enable_grad():
            images = one_of(leaves[0], parse_augmentation(self.augment), generator)
            features = problem.features.logits(bodies[number]["weights"], images)
            answers = ridge_answers(features, labels - 1 / labels.shape[1], visit["features"], self.ridge)
            loss = OUTER_LOSSES[self.loss](answers, visit["labels"])
        gradients = dict(zip(("images", "soft_labels"), torch.autograd.grad(loss, leaves), strict=False))
        left = int(visit["left"]) - 1
        if left:
            return Step(loss.detach(), gradients, {"bodies": bodies, "visit": visit | {"left": torch.tensor(left)}})
        bodies[number] = self._older(bodies[number], distilled, problem, generator)
        return Step(loss.detach(), gradients, {"bodies": bodies})

    def _visit(self, bodies: list[State], context: Context, generator: torch.Generator) -> State:
        """A random network of those kept, and its features of a real batch."""
        problem = context.problem.with_model(self.matched_on)
        number = torch.randint(len(bodies), (), generator=generator)
        real = problem.with_targets(problem.real.train.take(problem.real.train.draw(self.batch, generator)))
        pieces = pieces_of(problem.features, len(real), context.engine.chunk)
        with torch.no_grad():
            seen = [problem.features.logits(bodies[int(number)]["weights"], real.images[piece]) for piece in pieces]
        return {"body": number, "features": torch.cat(seen), "labels": real.labels, "left": torch.tensor(self.reuse)}

    def _fresh(self, problem: Problem, generator: torch.Generator) -> State:
        """An untrained network, with the moments of its optimiser and the age that it will reach."""
        (weights,) = problem.starts.sample(1, generator)
        zeros = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        last = torch.randint(self.max_age + 1, (), generator=generator)
        return {"weights": weights, **dict.fromkeys(_MOMENTS, zeros), "age": torch.tensor(0), "last": last}

    def _older(self, body: State, distilled: DistilledData, problem: Problem, generator: torch.Generator) -> State:
        """The network after some more steps on the distilled images, or a fresh one in its place."""
        age, last = int(body["age"]), int(body["last"])
        if age >= last:
            return self._fresh(problem, generator)
        weights, targets, parts = body["weights"], _by_class(distilled), parse_augmentation(self.augment)
        moments = {f"{kind}/{name}": body[kind][name] for kind in _MOMENTS for name in weights}
        network, adam = problem.network.trained_by(Loss(self.body_loss)), Adam()
        steps = min(self.body_steps, last - age)
        batches = shuffled_batches(len(targets), self.inner_batch, steps, generator)
        piece = PIECE if problem.device.type == "cpu" else 0
        for step in range(steps):
            chosen = batches[step % len(batches)].to(problem.device)
            noise = int(torch.randint(2**62, (), generator=generator)) if network.draws else None
            images = one_of(distilled.images[chosen], parts, generator)
            _, gradient = batch_gradient(network, weights, images, targets[chosen], piece, noise)
            weights, moments = adam.update(weights, gradient, moments, self.learning_rate, age + step)
        older = {kind: {name: moments[f"{kind}/{name}"] for name in weights} for kind in _MOMENTS}
        return {"weights": weights, **older, "age": torch.tensor(age + steps), "last": body["last"]}


def ridge_answers(
    known: Float[Tensor, "n d"], labels: Float[Tensor, "n k"], asked: Float[Tensor, "m d"], ridge: float
) -> Float[Tensor, "m k"]:
    """Predictions of kernel ridge regression from features to labels, solved in float64.

    Args:
        known: features of the images that it is fitted to.
        labels: a number for each of their classes, or any targets.
        asked: features of others.
        ridge: the penalty, in multiples of the mean diagonal entry of the kernel matrix.
    """
    # Apple's GPUs have no float64.
    inputs, targets, others = (one.to("cpu" if one.is_mps else one.device).double() for one in (known, labels, asked))
    kernel = inputs @ inputs.T
    penalty = ridge * kernel.diagonal().mean() * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    dual: Tensor = torch.linalg.solve(kernel + penalty, targets)
    return (others @ (inputs.T @ dual)).to(asked)


def _by_class(distilled: DistilledData) -> Float[Tensor, "n k"]:
    """The soft labels; of class indices, one-hot ones."""
    if distilled.soft_labels is not None:
        return distilled.soft_labels
    return F.one_hot(distilled.labels, len(distilled.provenance.classes)).to(distilled.images)


def _squared(answers: Float[Tensor, "m k"], labels: Int64[Tensor, "m"]) -> Float[Tensor, ""]:
    """Half the squared distance from centred labels."""
    centred = F.one_hot(labels, answers.shape[1]) - 1 / answers.shape[1]
    return (answers - centred).square().sum(1).mean() / 2


def _scaled_cross_entropy(answers: Float[Tensor, "m k"], labels: Int64[Tensor, "m"]) -> Float[Tensor, ""]:
    """The cross-entropy of the answers times the factor that makes it least.

    At the least, the factor's derivative is 0, so that it can be held fixed in that of the answers.
    """
    return F.cross_entropy(best_factor(answers.detach(), labels) * answers, labels)


def best_factor(answers: Float[Tensor, "m k"], labels: Int64[Tensor, "m"]) -> float:
    """The factor of answers, at least 0, with the least cross-entropy, which is convex in it: by bisection."""
    least, most = 0.0, _MOST
    right = answers.gather(1, labels[:, None]).mean()
    for _ in range(60):
        factor = (least + most) / 2
        rises = ((factor * answers).softmax(1) * answers).sum(1).mean() > right
        least, most = (least, factor) if rises else (factor, most)
    return (least + most) / 2


OUTER_LOSSES = {"cross-entropy": _scaled_cross_entropy, "mse": _squared}

"""Training by a recipe: the one loop that trains without differentiating through it."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from datadistill.data.augment import one_of, parse_augmentation
from datadistill.data.real import Split
from datadistill.distilled import DistilledData
from datadistill.engine.functional import Network, Weights, batch_gradient
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.errors import RequestError

Teacher: TypeAlias = Callable[[Float[Tensor, "n c h w"]], Float[Tensor, "n k"]]
"""Class scores for a batch, such as `functools.partial(network.logits, weights)`."""

PIECE = 64
"""Images of a batch that a CPU differentiates at a time: what more of them leave behind no longer fits its cache."""


def fit(
    network: Network,
    weights: Weights,
    data: Split | DistilledData,
    recipe: TrainRecipe,
    generator: torch.Generator,
    count: Callable[[], None] = lambda: None,
    keep: Callable[[Weights], None] = lambda weights: None,
    teacher: Teacher | None = None,
) -> Weights:
    """Weights of a network trained by a recipe.

    Args:
        network: what is trained.
        weights: where it starts; they are not changed.
        data: what it is trained on.
        recipe: how.
        generator: a CPU generator, for the order of the images, augmentation and dropout.
        count: called after each walk over the data, `walks_of` times.
        keep: called with the weights after each walk, and with those before the first.
        teacher: answers in the place of labels, where the recipe says so.

    Returns:
        The weights at the end. The same generator state gives the same bits with the same number of threads.

    Raises:
        RequestError: the recipe needs what the data does not hold, or a teacher.
    """
    walk, step, last = walk_of(recipe, data), 0, weights
    for step, last in enumerate(path(network, weights, data, recipe, generator, teacher)):
        if step % walk == 0:
            keep(last)
            if step:
                count()
    if step % walk:
        keep(last)
        count()
    return last


def path(
    network: Network,
    weights: Weights,
    data: Split | DistilledData,
    recipe: TrainRecipe,
    generator: torch.Generator,
    teacher: Teacher | None = None,
) -> Iterator[Weights]:
    """The weights before the first step and after every step; the arguments are those of `fit`."""
    if (recipe.labels == "teacher") != (teacher is not None):
        raise RequestError(f"labels are {recipe.labels}, but there is {'a' if teacher else 'no'} teacher")
    network, optimizer, walk = network.trained_by(recipe.criterion), recipe.make_optimizer(), walk_of(recipe, data)
    steps, restart = recipe.steps_in(walk), recipe.restart(walk)
    rates, parts = _rates(recipe, data, steps), parse_augmentation(recipe.augment)
    labels = data.targets if isinstance(data, DistilledData) else data.labels
    # Stored batches are taken whole, as they are where training is differentiated.
    piece = PIECE if data.images.device.type == "cpu" and recipe.batch != "stored" else 0
    state, begun = optimizer.init(weights), 0
    yield weights
    for step, chosen in enumerate(islice(_batches(recipe, data, generator), steps)):
        if step == restart:
            state, begun = optimizer.init(weights), step
        noise = int(torch.randint(2**62, (), generator=generator)) if network.draws else None
        batch = one_of(data.images[chosen], parts, generator)
        targets = labels[chosen] if teacher is None else _answers(teacher, batch, recipe)
        _, gradient = batch_gradient(network, weights, batch, targets, piece, noise)
        weights, state = optimizer.update(weights, gradient, state, rates(step), step - begun)
        yield weights


def walk_of(recipe: TrainRecipe, data: Split | DistilledData) -> int:
    """Gradient steps of one walk over the data.

    Raises:
        RequestError: the recipe asks for stored batches, which real images have none of.
    """
    if recipe.batch != "stored":
        return -(-len(data.labels) // recipe.batch)
    if not isinstance(data, DistilledData):
        raise RequestError("batch is stored, but real images come in no batches: give a number")
    return len(data.batches)


def walks_of(recipe: TrainRecipe, data: Split | DistilledData) -> int:
    """Number of calls of `count` by `fit`."""
    return -(-recipe.steps_in(walk := walk_of(recipe, data)) // walk)


def _batches(
    recipe: TrainRecipe, data: Split | DistilledData, generator: torch.Generator
) -> Iterator[Int64[Tensor, "b"]]:
    """The images of each step, walk after walk without end."""
    stored = data.batches if recipe.batch == "stored" and isinstance(data, DistilledData) else None
    count, device = len(data.labels) if stored is None else len(stored), data.images.device
    while True:
        order = torch.randperm(count, generator=generator) if recipe.order == "shuffled" else torch.arange(count)
        order = order.to(device)
        if stored is not None:
            yield from stored[order]
        else:
            assert recipe.batch != "stored"
            yield from torch.split(order, recipe.batch)


def _rates(recipe: TrainRecipe, data: Split | DistilledData, steps: int) -> Callable[[int], Tensor | float]:
    """The learning rate of each step."""
    first, walk = recipe.lr, walk_of(recipe, data)
    if first == "learned":
        learned = data.learning_rates if isinstance(data, DistilledData) else None
        if learned is None:
            raise RequestError("the rate is learned, but the data holds none: give a number")
        if len(learned) == steps and recipe.schedule == "constant":
            return learned.detach().__getitem__
        if len(learned) != 1:
            raise RequestError(
                f"the data holds {len(learned)} learning rates, but its {steps} steps with schedule {recipe.schedule} "
                "take one in all, or one for each with schedule constant"
            )
        first = float(learned)
    rate = first
    return lambda step: rate * recipe.factor(step, walk)


@torch.no_grad()
def _answers(teacher: Teacher, batch: Float[Tensor, "n c h w"], recipe: TrainRecipe) -> Float[Tensor, "n k"]:
    """Teacher's labels of a batch, as the loss takes them."""
    scores = teacher(batch)
    return scores if recipe.loss == "mse" else (scores / recipe.temperature).softmax(1)

"""Outer step of one network as one CUDA graph: all inner steps, the real batch, and the walk back.

On a GPU the operations of a small network take less time than launching them. A captured graph launches all of them at
once, with the addresses of the tensors that it was captured with: what changes between calls has to be copied there
first, and so has to be given, not closed over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datadistill.engine.compiled import replayed, warn_once
from datadistill.engine.config import Engine
from datadistill.engine.functional import Network, Weights
from datadistill.engine.hypergradient import Hypergradient, hypergradient
from datadistill.engine.optimizers import Optimizer
from datadistill.engine.unroll import InnerStep
from datadistill.utils import ranks


@dataclass(frozen=True, eq=False)
class OuterLoss:
    """An outer loss, and its gradient with respect to the last weights.

    Attributes:
        of: called with the last weights and `tensors`; of functions of one name, a graph takes the first for all.
        tensors: all others that the loss depends on and that may change, such as the real batch.
    """

    of: Callable[..., tuple[Tensor, Weights]]
    tensors: Sequence[Tensor]

    def __call__(self, last: Weights) -> tuple[Tensor, Weights]:
        return self.of(last, *self.tensors)


def outer_step(
    network: Network,
    optimizer: Optimizer,
    weights: Weights,
    steps: Sequence[InnerStep],
    outer: OuterLoss,
    engine: Engine,
    surrogate_width: float = 0.0,
    first: int = 0,
) -> Hypergradient:
    """`hypergradient`, replayed as a captured graph where the engine says so; the arguments are those of it."""
    inside = replace(engine, execution="eager") if engine.execution == "graph" else engine
    if engine.execution == "graph" and network.draws:
        warn_once(network, "draws", "execution graph cannot repeat what dropout or augmentation draws; running eagerly")
    if engine.execution != "graph" or network.draws:
        return hypergradient(network, optimizer, weights, steps, outer, inside, surrogate_width, first)
    firsts = {step.batch: step for step in reversed(steps)}
    names, numbers = list(weights), tuple(step.batch for step in steps)
    soft = steps[0].labels.is_floating_point()
    given = [*weights.values(), torch.stack([step.rate.detach() for step in steps])]
    given += [step.images for step in firsts.values()] + [step.labels for step in firsts.values()] + [*outer.tensors]

    def flat(tensors: list[Tensor]) -> list[Tensor]:
        values = iter(tensors)
        start, rates = {name: next(values) for name in names}, next(values)
        images, labels = ({number: next(values) for number in firsts} for _ in range(2))
        walked = [InnerStep(images[n], labels[n], rate, n) for n, rate in zip(numbers, rates.unbind(), strict=True)]
        same = OuterLoss(outer.of, list(values))
        found = hypergradient(network, optimizer, start, walked, same, inside, surrogate_width, first)
        data = [part[number] for part in (found.images, found.labels)[: 1 + soft] for number in firsts]
        return [found.loss, found.rates, *data]

    key = (getattr(outer.of, "__qualname__", ""), optimizer, inside, surrogate_width, first, numbers)
    with ranks.alone():  # a graph holds the operations of one GPU
        values = iter(replayed(network, key, flat, given))
    loss, rates = next(values), next(values)
    images = {number: next(values) for number in firsts}
    return Hypergradient(loss, images, {number: next(values) for number in firsts if soft}, rates)

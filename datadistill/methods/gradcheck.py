"""A method's gradient on one's own network, against finite differences in float64.

Along a direction d, the slope of the outer loss is <gradient, d>, and it is also

    (loss(x + s d) - loss(x - s d)) / 2 s    for a small step s.

The two must agree for whatever network, method and engine there is. The step is the difficulty: rounding spoils a small
one, and curvature a large one; and where ReLU or max pooling make the loss piecewise smooth, with jumps, a step that
crosses a jump measures the jump. So several steps are tried and the best agreement counts. That is honest, because a
slope that is wrong by more than the tolerance lies off all the steps that measure the true one; only by a rare accident
would one of the spoilt ones meet it, and hardly so along several directions at once.

The images are a method's own at its start, with a little noise. Without it, even areas of real images tie the values
that max pooling chooses from, and at a tie there is no derivative to compare.

Everything is computed in float64, where `engine.kernels` leaves the work to PyTorch: our own operations are compared
with it when they are built.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from datadistill.data.real import RealData
from datadistill.distilled import DistilledData
from datadistill.engine.functional import Weights
from datadistill.methods import record_of
from datadistill.methods.base import Context, Method, Problem, State, plan
from datadistill.pretraining.initial_weights import InitialWeights
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream

Slope: TypeAlias = Callable[[Callable[[float], DistilledData], float, float], float]

TOLERANCE = 1e-4
"""The largest relative error of a right gradient."""

STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
"""Steps along a direction of length 1; for a learning rate, relative to it."""

_GOOD_ENOUGH = TOLERANCE / 100
_NOISE = 0.1
"""Standard deviation of what is added to the images, whose own is near 1."""

_FLOOR = 1e-8
"""Slopes below this are rounding: in float64, a loss near 1 and a step of 1e-4 leave an error near 1e-12."""

_REAL_IMAGES = 1024
"""From how many real images the batches are drawn, so that a large dataset need not be converted."""


@dataclass(frozen=True)
class Row:
    """One tensor's gradient, compared.

    Attributes:
        name: of the tensor.
        analytic: the slope along each direction, from the gradient.
        numeric: the same from finite differences, each with the step that agrees best.
        error: the length of the difference, relative to the longer one of the two.
    """

    name: str
    analytic: tuple[float, ...]
    numeric: tuple[float, ...]
    error: float

    @property
    def agrees(self) -> bool:
        """Whether the error is small enough for an exact gradient; never where it is not a number."""
        return self.error < TOLERANCE


@dataclass(frozen=True)
class Check:
    """A gradient, compared.

    Attributes:
        rows: for the images and soft labels of each distilled batch and for each learning rate.
        loss: the outer loss.
        is_exact: whether the engine promises the exact derivative; else it is a declared approximation.
        remarks: sentences on how it was checked.
    """

    rows: tuple[Row, ...]
    loss: float
    is_exact: bool
    remarks: tuple[str, ...]

    @property
    def worst(self) -> Row:
        """The row with the largest error."""
        return max(self.rows, key=lambda row: math.inf if math.isnan(row.error) else row.error)

    @property
    def passed(self) -> bool:
        """Whether every row agrees, or need not."""
        return not self.is_exact or all(row.agrees for row in self.rows)


def rows_of(distilled: DistilledData) -> int:
    """Number of rows in a check of this data."""
    rates = distilled.learning_rates
    kinds = 1 if distilled.soft_labels is None else 2
    return kinds * len(distilled.batches) + (0 if rates is None else len(rates))


def check_hypergradient(
    method: Method,
    problem: Problem,
    *,
    directions: int = 3,
    count: Callable[[], None] = lambda: None,
) -> Check:
    """Compare a method's gradient, at its own start, with central differences of its outer loss.

    Args:
        method: whose gradient it is. Options that depart from the exact derivative, such as `surrogate_width`, are off.
        problem: the dataset, the network and the engine.
        directions: random directions for the images, or soft labels, of each batch; every rate is moved on its own.
        count: called when a row is done.

    Raises:
        RequestError: the device has no float64, or the method does not fit the problem.
    """
    if problem.device.type == "mps":
        raise RequestError("device mps has no float64, which the check needs: use --device cpu")
    method, remarks = _exact(method)
    method = method.resolve(problem)
    distilled, state = _start_in_double(method, problem)
    exact = _in_double(problem)
    context = Context(exact, plan(method, exact))

    def answer(candidate: DistilledData) -> tuple[float, dict[str, Tensor]]:
        # The same stream each time, hence the same batch, networks and dropout.
        step = method.step(candidate, state, context, stream(problem.seed, "check"))
        return float(step.loss), step.gradients

    loss, gradients = answer(distilled)

    def slope(move: Callable[[float], DistilledData], expected: float, scale: float) -> float:
        return _slope(lambda size: answer(move(size))[0], expected, scale)

    rows = []
    for number, batch in enumerate(distilled.batches):
        rows.append(_batch_row("images", distilled, gradients["images"], number, batch, directions, slope))
        count()
    for number, batch in enumerate(distilled.batches if "soft_labels" in gradients else ()):
        rows.append(_batch_row("soft_labels", distilled, gradients["soft_labels"], number, batch, directions, slope))
        count()
    for t in range(len(gradients.get("learning_rates", ()))):
        rows.append(_rate_row(distilled, gradients["learning_rates"], t, slope))
        count()
    return Check(tuple(rows), loss, problem.engine.is_exact, remarks)


def _batch_row(
    kind: str, distilled: DistilledData, gradient: Tensor, number: int, batch: Tensor, directions: int, slope: Slope
) -> Row:
    """Row of the images, or soft labels, of one batch, along random directions."""
    values: Tensor = getattr(distilled, kind)
    shape = values[batch].shape
    # What the slope along a random direction is like: one of them may be small by chance.
    typical = float(gradient[batch].norm()) / math.sqrt(math.prod(shape))
    analytic, numeric = [], []
    for index in range(directions):
        drawn = torch.randn(shape, generator=stream(number, "check", "direction", index), dtype=torch.float64)
        direction = torch.zeros_like(values)
        direction[batch] = (drawn / drawn.norm()).to(direction.device)
        expected = float((gradient * direction).sum())

        def move(size: float, direction: Tensor = direction) -> DistilledData:
            moved: dict[str, Any] = {kind: values + size * direction}
            return replace(distilled, **moved)

        analytic.append(expected)
        numeric.append(slope(move, expected, max(abs(expected), typical)))
    return _row(f"{kind.replace('_', ' ')} of batch {number + 1}", analytic, numeric)


def _rate_row(distilled: DistilledData, gradient: Tensor, t: int, slope: Slope) -> Row:
    """Row of one learning rate."""
    rates = distilled.learning_rates
    assert rates is not None
    rate, expected = float(rates[t]), float(gradient[t])

    def move(size: float) -> DistilledData:
        moved = rates.clone()
        moved[t] += size * rate
        return replace(distilled, learning_rates=moved)

    # The step is relative to the rate, and so is the slope that it measures.
    numeric = slope(move, expected * rate, abs(expected * rate)) / rate
    return _row(f"learning rate {t + 1}", [expected], [numeric])


def _row(name: str, analytic: list[float], numeric: list[float]) -> Row:
    longest = max(math.hypot(*analytic), math.hypot(*numeric), _FLOOR)
    apart = math.hypot(*(one - other for one, other in zip(analytic, numeric, strict=True)))
    return Row(name, tuple(analytic), tuple(numeric), apart / longest)


def _slope(loss: Callable[[float], float], expected: float, scale: float) -> float:
    """The central difference that agrees best with what is expected, tried until one is good enough.

    Where none agrees, the choice does not look at what is expected: it is the one that the next step changes least.
    """
    scale = max(scale, _FLOOR)
    found = []
    for step in STEPS:
        found.append((loss(step) - loss(-step)) / (2 * step))
        if abs(found[-1] - expected) <= _GOOD_ENOUGH * scale:
            return found[-1]
    best = min(found, key=lambda slope: _distance(slope, expected))
    if _distance(best, expected) <= TOLERANCE * scale:
        return best
    return min(pairwise(found), key=lambda pair: _distance(*pair))[0]


def _distance(one: float, other: float) -> float:
    return math.inf if math.isnan(one - other) else abs(one - other)


def _exact(method: Any) -> tuple[Any, tuple[str, ...]]:
    """The method with the exact derivative, and a sentence for each option that had to be turned off for it."""
    changes = {name: value for name, value in record_of(method).exact.items() if getattr(method, name) != value}
    remarks = [
        f"checked with {name} {_brief(value)}: {_brief(getattr(method, name))} departs from the exact derivative on "
        "purpose"
        for name, value in changes.items()
    ]
    return (replace(method, **changes) if changes else method), tuple(remarks)


def _brief(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _start_in_double(method: Method, problem: Problem) -> tuple[DistilledData, State]:
    start, state = method.init(problem, stream(problem.seed, "start"))
    rates = start.learning_rates
    noise = torch.randn(start.images.shape, generator=stream(problem.seed, "check", "noise"), dtype=torch.float64)
    distilled = replace(
        start,
        images=start.images.double() + _NOISE * noise.to(start.images.device),
        learning_rates=None if rates is None else rates.double(),
        initial_weights=start.initial_weights and _doubled(start.initial_weights),
        soft_labels=None if start.soft_labels is None else start.soft_labels.double(),
    )
    return distilled, state


def _in_double(problem: Problem) -> Problem:
    """Problem in float64, with some of its real images."""
    module = copy.deepcopy(problem.network.module).double()
    network = replace(problem.network, module=module, operations=())
    return replace(problem, real=_some_in_double(problem.real), network=network, starts=_Double(problem.starts))


def _some_in_double(real: RealData) -> RealData:
    each = max(1, _REAL_IMAGES // real.num_classes)
    some = real.train.take(torch.cat([real.train.of_class(label)[:each] for label in range(real.num_classes)]))
    return replace(real, train=replace(some, images=some.images.double()))


@dataclass(frozen=True, eq=False)
class _Double:
    """Initial weights in float64."""

    starts: InitialWeights

    @property
    def fixed(self) -> Weights | None:
        return self.starts.fixed and _doubled(self.starts.fixed)

    def sample(self, count: int, generator: torch.Generator) -> list[Weights]:
        return [_doubled(weights) for weights in self.starts.sample(count, generator)]


def _doubled(weights: Weights) -> Weights:
    return {name: weight.double() for name, weight in weights.items()}

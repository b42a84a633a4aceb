"""Optimiser of the distilled data: variables, learning-rate schedule, and one outer update."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from datadistill.distilled import DistilledData
from datadistill.engine.functional import Weights
from datadistill.engine.optimizers import SGD, Adam, Optimizer, State
from datadistill.utils.errors import RequestError
from datadistill.utils.fields import Flag, check_numbers

_NORM_MEMORY = 0.99
_NORM_LEAP = 5.0
_WARM_AVERAGE = 10

_KEYS = {"images": "images", "learning_rates": "log_rates", "soft_labels": "soft_labels"}
"""The variables by their names in `DistilledData`, and as they are stored."""

_POSITIVE = frozenset({"learning_rates"})
"""Variables that are learned by their logarithm."""


@dataclass(frozen=True)
class Outer:
    """Hyper-parameters of the outer loop; the defaults are those of Wang et al. 2018 and their code.

    Attributes:
        lr: learning rate of the images.
        lr_lr: learning rate of the logarithms of the learning rates; 0 takes `lr`.
        lr_label: learning rate of the soft labels; 0 takes `lr`.
        betas: of Adam.
        optimizer: `adam`, or `sgd` as the methods after 2018 have it.
        momentum: of SGD.
        schedule: of the learning rates: `halving` (in ten equal parts, each at half the rate of the one before, as
            the authors do), `cosine`, `linear` or `quadratic` (to zero), or `constant`.
        warmup: share of the run over which learning rates first rise linearly from zero.
        clip: longest image gradient allowed, in multiples of its running mean length; a longer one is shrunk, and
            that of the rates with it. 0 allows any.
        average: the result is an exponential average of the images and rates with this decay; 0 takes the last.
        eval_every: outer steps between validations on held-out data, each with a checkpoint.
        settle: networks with which, at the end, the best checkpoint and the last are compared on held-out data, with
            all learning rates as learned and lower: those that are learned lie where training is about to become
            chaotic, which the gradient cannot see (`docs/mnist-random-100.md`). 0 keeps the best checkpoint as it is.
    """

    lr: float = field(default=0.01, metadata=Flag(was="rate").metadata)
    lr_lr: float = field(default=0.0, metadata=Flag(was="rate_of_rates").metadata)
    lr_label: float = field(default=0.0, metadata=Flag(was="rate_of_labels").metadata)
    betas: tuple[float, float] = (0.5, 0.999)
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    schedule: Literal["halving", "cosine", "linear", "quadratic", "constant"] = "halving"
    warmup: float = 0.0
    clip: float = 0.0
    average: float = 0.0
    eval_every: int = field(default=100, metadata=Flag(was="look_every").metadata)
    settle: int = 0

    def __post_init__(self) -> None:
        least = {"settle": 0, "eval_every": 1}
        check_numbers(self, least, positive=["lr"], no_less=["lr_lr", "lr_label", "clip"])
        shares = {"first beta": self.betas[0], "second beta": self.betas[1]}
        shares |= {name: getattr(self, name) for name in ("warmup", "average", "momentum")}
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise RequestError(f"{name} is {value}, but must be at least 0 and less than 1")

    def make_optimizer(self) -> Optimizer:
        """Optimiser of the outer steps."""
        return Adam(self.betas) if self.optimizer == "adam" else SGD(self.momentum)

    def lr_at(self, progress: float) -> float:
        """Learning rate when this share of the run, 0 to 1, is done."""
        warm = min(1.0, progress / self.warmup) if self.warmup else 1.0
        fall = {
            "halving": 0.5 ** math.floor(10 * min(progress, 0.999)),
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
            "linear": 1 - progress,
            "quadratic": (1 - progress) ** 2,
            "constant": 1.0,
        }[self.schedule]
        return self.lr * warm * fall


@dataclass(frozen=True, eq=False)
class Variables:
    """Learned variables with the optimiser's state. Immutable: a step makes a new one.

    Attributes:
        values: `images`, `soft_labels`, and `log_rates`, which keep learning rates positive; those that are learned.
        moments: the optimiser's.
        average: of the values.
        norm: running mean length of the image gradient.
        steps: how many steps were taken.
    """

    values: Weights
    moments: State
    average: Weights
    norm: float = 0.0
    steps: int = 0

    @classmethod
    def of(cls, distilled: DistilledData, learned: Collection[str], outer: Outer) -> "Variables":
        """The variables of distilled data before the first step.

        Args:
            distilled: all of it; what is not learned stays as it is there.
            learned: names of what is learned: `images`, `learning_rates`, `soft_labels`.
            outer: the optimiser's hyper-parameters.
        """
        present = {name: getattr(distilled, name) for name in _KEYS if name in learned}
        values = {
            key: present[name].log() if name in _POSITIVE else present[name]
            for name, key in _KEYS.items()
            if present.get(name) is not None
        }
        return cls(values, outer.make_optimizer().init(values), values)

    def are_sound(self) -> bool:
        """Whether all values are finite."""
        return all(bool(value.isfinite().all()) for value in self.values.values())


def filled(template: DistilledData, values: Weights) -> DistilledData:
    """Distilled data with these values of its variables."""
    changes: dict[str, Any] = {
        name: values[key].exp() if name in _POSITIVE else values[key] for name, key in _KEYS.items() if key in values
    }
    if "soft_labels" in changes:
        changes["labels"] = changes["soft_labels"].argmax(1)
    return replace(template, **changes)


def improve(
    variables: Variables,
    gradients: Mapping[str, Tensor],
    outer: Outer,
    rate: float,
    non_negative: Collection[str] = (),
) -> Variables:
    """One optimiser step along the gradients of a method; a variable without a gradient stays as it is.

    Args:
        variables: before the step.
        gradients: by the names in `DistilledData`.
        outer: the optimiser's hyper-parameters.
        rate: the learning rate of the images; that of the others is in proportion.
        non_negative: variables that are cut off below zero.

    Raises:
        RequestError: a gradient of something that is not learned.
    """
    learned = [name for name, key in _KEYS.items() if key in variables.values]
    if unknown := gradients.keys() - set(learned):
        raise RequestError(
            f"the method gives a gradient of '{min(unknown)}', but what its record learns of its data is "
            f"{', '.join(learned) or 'nothing'}: add it to `learns`, or leave the gradient out"
        )
    slopes = {_KEYS[name]: gradient for name, gradient in gradients.items()}
    for name in _POSITIVE & gradients.keys():  # d/d log(r) = r * d/dr
        slopes[_KEYS[name]] = slopes[_KEYS[name]] * variables.values[_KEYS[name]].exp()
    norm = float(gradients["images"].norm()) if "images" in gradients else 0.0
    usual = variables.norm or norm
    if outer.clip and norm > outer.clip * usual:
        slopes = {name: slope * (outer.clip * usual / norm) for name, slope in slopes.items()}
    optimizer, values, moments = outer.make_optimizer(), dict[str, Tensor](), dict[str, Tensor]()
    rates = {"images": outer.lr, "log_rates": outer.lr_lr, "soft_labels": outer.lr_label}
    pace = {name: rate * (own or outer.lr) / outer.lr for name, own in rates.items()}
    floored = {_KEYS[name] for name in non_negative}
    for name, value in variables.values.items():
        mine = {key: state for key, state in variables.moments.items() if key.endswith(f"/{name}")}
        if name not in slopes:
            values[name] = value
            moments |= mine
            continue
        moved, moment = optimizer.update({name: value}, slopes, mine, pace[name], variables.steps)
        values |= {key: value.clamp_min(0) for key, value in moved.items()} if name in floored else moved
        moments |= moment
    steps = variables.steps + 1
    # A young average forgets faster, so that the start does not linger in it.
    decay = outer.average * min(1.0, steps / (steps + _WARM_AVERAGE))
    average = {name: torch.lerp(value, variables.average[name], decay) for name, value in values.items()}
    # The mean follows long gradients, so that it can grow again, but no single one throws it far.
    usual = _NORM_MEMORY * usual + (1 - _NORM_MEMORY) * min(norm, _NORM_LEAP * usual)
    return Variables(values, moments, average, usual, steps)

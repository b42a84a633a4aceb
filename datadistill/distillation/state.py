"""Run state between two outer steps, and its checkpoint format."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from datadistill.distillation.optimizer import Variables
from datadistill.distillation.run_folder import Checkpoint
from datadistill.engine.functional import Weights
from datadistill.methods.base import State
from datadistill.utils.errors import require
from datadistill.utils.schema import from_json

_VARIABLES, _STATE, _BEST, _GOOD = "variables", "state", "best", "good"


@dataclass(frozen=True, eq=False)
class Best:
    """Best validated data so far.

    Attributes:
        correct: its accuracy on held-out images.
        loss: its loss there.
        step: when it was.
        values: what it was, as `Variables.average`.
    """

    correct: float
    loss: float
    step: int
    values: Weights


@dataclass(frozen=True, eq=False)
class RunState:
    """A run between two outer steps. Immutable; the losses are those since the last validation.

    Attributes:
        variables: what is learned.
        step: outer steps done.
        seconds: spent, earlier parts of a resumed run included.
        method_state: the method's own.
        fallbacks: choices of the engine that were given up because memory ran out.
        rollbacks: how often the run went back and halved its rate.
        loss_sum: of the outer loss since the last validation.
        loss_count: outer steps since the last validation.
        first_loss: of the first outer step, against which divergence is told.
        accuracy: on held-out images at the last validation.
        best: the best validated data so far.
        finished: nothing is left to do.
        remarks: sentences on what went wrong on the way.
        is_paced: whether the method has asked how much of the run is done.
        good: the state to roll back to, when that is not this one.
    """

    variables: Variables
    step: int = 0
    seconds: float = 0.0
    method_state: State = field(default_factory=dict)
    fallbacks: int = 0
    rollbacks: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    first_loss: float | None = None
    accuracy: float | None = None
    best: Best | None = None
    finished: bool = False
    remarks: tuple[str, ...] = ()
    is_paced: bool = False
    good: "RunState | None" = None

    @property
    def loss(self) -> float:
        """Mean outer loss since the last validation."""
        return self.loss_sum / max(1, self.loss_count)


@dataclass(frozen=True)
class _Facts:
    """The JSON of a checkpoint: attributes of `RunState`, its variables and its best data."""

    step: int
    seconds: float
    rollbacks: int
    loss_sum: float
    loss_count: int
    first_loss: float | None
    accuracy: float | None
    finished: bool
    remarks: tuple[str, ...]
    norm: float
    steps: int
    fallbacks: int = 0
    is_paced: bool = True  # nobody watched, in files from before that was recorded
    best: tuple[float, float, int] | None = None
    good: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("step", "seconds", "rollbacks", "loss_count", "norm", "steps", "fallbacks"):
            require(getattr(self, name) >= 0, f"'{name}' is negative")
        require(self.best is not None or not self.finished, "it is finished, but has no best data")


_FACTS = ("step", "seconds", "rollbacks", "loss_sum", "loss_count", "first_loss", "accuracy", "finished", "remarks")


def flat(state: State) -> dict[str, Tensor]:
    """Nested dictionaries and lists of tensors as one: `a/b` names the entry of a dictionary, `a/#0` that of a list."""
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        entries = {f"#{index}": entry for index, entry in enumerate(value)} if isinstance(value, list) else value
        if isinstance(entries, dict):
            tensors |= {f"{name}/{rest}": tensor for rest, tensor in flat(entries).items()}
        else:
            tensors[name] = entries
    return tensors


def nested(tensors: Mapping[str, Tensor]) -> State:
    """Inverse of `flat`; an empty dictionary or list is gone."""
    state: State = {}
    for path, tensor in tensors.items():
        *names, last = path.split("/")
        place = state
        for name in names:
            place = place.setdefault(name, {})
        place[last] = tensor
    return {name: _listed(value) for name, value in state.items()}


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    entries = {name: _listed(entry) for name, entry in value.items()}
    is_list = entries.keys() == {f"#{index}" for index in range(len(entries))}
    return [entries[f"#{index}"] for index in range(len(entries))] if is_list else entries


def pack(run: RunState) -> Checkpoint:
    """Checkpoint of a run state."""
    variables = run.variables
    groups: dict[str, dict[str, Tensor]] = {
        f"{_VARIABLES}.values": variables.values,
        f"{_VARIABLES}.moments": variables.moments,
        f"{_VARIABLES}.average": variables.average,
        _STATE: flat(run.method_state),
    }
    facts: dict[str, Any] = {name: getattr(run, name) for name in _FACTS}
    facts |= {"norm": variables.norm, "steps": variables.steps, "fallbacks": run.fallbacks, "is_paced": run.is_paced}
    if run.best is not None:
        groups[_BEST] = run.best.values
        facts["best"] = [run.best.correct, run.best.loss, run.best.step]
    tensors = {f"{group}:{name}": t.clone() for group, named in groups.items() for name, t in named.items()}
    if run.good is not None:
        inner = pack(run.good)
        facts["good"] = inner.facts
        tensors |= {f"{_GOOD}:{name}": tensor for name, tensor in inner.tensors.items()}
    return Checkpoint(tensors, facts)


def unpack(checkpoint: Checkpoint, first: RunState) -> RunState:
    """The run state of a checkpoint.

    Args:
        checkpoint: what was saved.
        first: the state that the run began with, whose tensors have the same names, shapes and types.

    Raises:
        DamagedFileError: it is not a checkpoint of this version, or of another run.
    """
    facts = from_json(_Facts, checkpoint.facts)
    begun = first.variables
    device = next(iter(begun.values.values())).device

    def group(prefix: str) -> dict[str, Tensor]:
        start = f"{prefix}:"
        named = {n.removeprefix(start): t for n, t in checkpoint.tensors.items() if n.startswith(start)}
        return {name: tensor.to(device) for name, tensor in named.items()}

    variables = Variables(
        values=group(f"{_VARIABLES}.values"),
        moments=group(f"{_VARIABLES}.moments"),
        average=group(f"{_VARIABLES}.average"),
        norm=facts.norm,
        steps=facts.steps,
    )
    for name in ("values", "moments", "average"):
        _check_like(getattr(variables, name), getattr(begun, name))
    state, known = group(_STATE), flat(first.method_state)
    # Files from before the loop looked after memory have this among the method's tensors.
    fallbacks = int(state.pop("engine.cheaper", torch.tensor(facts.fallbacks)))
    both = state.keys() & known.keys()  # a method may remember more later
    _check_like({name: state[name] for name in both}, {name: known[name] for name in both}, is_finite=False)
    plain = {name: getattr(facts, name) for name in _FACTS}
    run = RunState(variables, method_state=nested(state), fallbacks=fallbacks, is_paced=facts.is_paced, **plain)
    if facts.best is not None:
        run = replace(run, best=Best(*facts.best, group(_BEST)))
        _check_like(group(_BEST), begun.values)
    if facts.good is not None:
        start = f"{_GOOD}:"
        tensors = {n.removeprefix(start): t for n, t in checkpoint.tensors.items() if n.startswith(start)}
        run = replace(run, good=unpack(Checkpoint(tensors, facts.good), first))
    return run


def _check_like(given: State, first: State, is_finite: bool = True) -> None:
    """Refuse tensors that are not like those that a run began with."""
    require(given.keys() == first.keys(), f"it holds {', '.join(given)} instead of {', '.join(first)}")
    for name, tensor in given.items():
        expected = first[name]
        require(
            (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype),
            f"'{name}' is {tensor.dtype} {list(tensor.shape)}, not {expected.dtype} {list(expected.shape)}",
        )
        require(not is_finite or bool(tensor.isfinite().all()), f"'{name}' is not finite")

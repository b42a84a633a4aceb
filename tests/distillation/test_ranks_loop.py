"""An outer loop that several ranks go through together."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from forked import in_ranks

import datadistill as dd
from datadistill.methods import DD
from datadistill.methods.base import Context, State, Step
from datadistill.utils import ranks

OUTER = dd.Outer(eval_every=2, settle=2)


@dataclass(frozen=True)
class Hungry(DD):
    """Dataset distillation whose last rank runs out of memory, within what is shared or outside of it."""

    within: bool = False

    def step(self, distilled: dd.DistilledData, state: State, context: Context, generator: torch.Generator) -> Step:
        is_full = context.engine.storage == "full" and ranks.rank() == ranks.count() - 1
        if is_full and not self.within:
            raise MemoryError
        if is_full:
            starts = context.problem.starts
            context = context._replace(problem=replace(context.problem, starts=_Bad(starts)))
        return super().step(distilled, state, context, generator)


class _Bad:
    """Initial weights that cannot be used, for networks of one's own share."""

    fixed = None

    def __init__(self, starts: object) -> None:
        self._starts = starts

    def sample(self, count: int, generator: torch.Generator) -> list[dict[str, torch.Tensor]]:
        return [_Weights(weights) for weights in self._starts.sample(count, generator)]  # type: ignore[attr-defined]


class _Weights(dict[str, torch.Tensor]):
    def items(self):  # type: ignore[no-untyped-def]
        raise MemoryError


def distilled(digits: dd.RealData, method: DD, **options: object) -> dd.Run:
    usual = {"model": "mlp", "weights": "random-init", "ipc": 1, "iterations": 4, "outer": OUTER, "device": "cpu"}
    return dd.distill(digits, method, **{**usual, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("within", [False, True], ids=["before", "within"])
def test_memory_that_runs_out_on_one_rank_makes_all_take_the_cheaper_plan(
    within: bool, digits: dd.RealData, tmp_path: Path
) -> None:
    method = Hungry(steps=1, epochs=2, batch=64, networks=2, within=within)

    def work() -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
        run = distilled(digits, method)
        return run.distilled.tensors(), run.remarks

    alone = distilled(digits, method)
    assert alone.remarks == ("memory ran out with storage full; going on with storage recompute.",)
    for tensors, remarks in in_ranks(2, work, tmp_path):
        assert remarks == alone.remarks
        assert all(torch.equal(tensors[name], tensor) for name, tensor in alone.distilled.tensors().items())


def test_a_clock_is_that_of_rank_0(digits: dd.RealData, tmp_path: Path) -> None:
    """So all end at the same step."""
    method = DD(steps=1, epochs=2, batch=64, networks=2)

    def work() -> tuple[int, float]:
        run = distilled(digits, method, iterations=None, budget=0.3)
        return run.steps, run.seconds

    first, other = in_ranks(2, work, tmp_path)
    assert first == other
    assert first[0] > 0


def test_a_folder_is_read_and_written_by_rank_0(digits: dd.RealData, tmp_path: Path) -> None:
    method, folders = DD(steps=1, epochs=2, batch=64, networks=2), [tmp_path / "run", tmp_path / "elsewhere"]

    def go(iterations: int) -> dd.Run:
        outer = replace(OUTER, schedule="constant")
        return distilled(digits, method, out=folders[ranks.rank()], resume=True, iterations=iterations, outer=outer)

    def work() -> tuple[dict[str, torch.Tensor], int]:
        run = go(iterations=6)
        return run.distilled.tensors(), run.steps

    in_ranks(2, lambda: go(iterations=4).steps, tmp_path / "first")
    (tensors, steps), other = in_ranks(2, work, tmp_path / "longer")
    assert not folders[1].exists()
    assert (steps, other[1]) == (6, 6)
    alone = distilled(digits, method, iterations=6, outer=replace(OUTER, schedule="constant")).distilled.tensors()
    assert all(torch.equal(tensors[name], alone[name]) and torch.equal(other[0][name], alone[name]) for name in alone)

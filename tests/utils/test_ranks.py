"""Several processes that do one job: what they share, and how they end."""

import math
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from forked import codes_of, in_ranks, start

from datadistill.training.accuracy import Accuracy
from datadistill.utils import ranks
from datadistill.utils.errors import DatadistillError, RequestError
from datadistill.utils.interrupts import Stopped, StopRequest
from datadistill.utils.place import Place, place_given


class Answer(NamedTuple):
    loss: torch.Tensor
    parts: dict[int, torch.Tensor]


def answers(items: Sequence[int]) -> list[Any]:
    return [Answer(torch.tensor(float(item)), {item: torch.full((item, 2), 0.1 * item)}) for item in items]


@pytest.mark.parametrize("count", [2, 3])
def test_shares_of_any_size_are_gathered_in_order(count: int, tmp_path: Path) -> None:
    def work() -> Any:
        found = {}
        for size in (0, 1, 2, 5):
            mine = list[int]()
            found[size] = (
                [
                    [float(one.loss), {n: part.tolist() for n, part in one.parts.items()}]
                    for one in ranks.shared(lambda items: (mine.extend(items), answers(items))[1], range(size))  # noqa: B023
                ],
                mine,
            )
        return found

    every = in_ranks(count, work, tmp_path)
    for size in (0, 1, 2, 5):
        expected = [[float(one.loss), {n: p.tolist() for n, p in one.parts.items()}] for one in answers(range(size))]
        assert all(one[size][0] == expected for one in every)
        done = sorted(item for one in every for item in one[size][1])
        assert done == ([0] * count if size == 1 else list(range(size))), "a single item is not shared"


VALUES: list[Any] = [
    None,
    [True, 3, 0.1, math.inf, "é"],
    (1, (2.5, [])),
    {"a": {1: torch.arange(3)}, 2: torch.tensor([1.5], dtype=torch.float64)},
    Accuracy(0.5, math.nan),
    [torch.empty(0, 3), torch.tensor(True), torch.ones(2, 3, dtype=torch.bfloat16).T],
]


def test_values_arrive_as_they_are(tmp_path: Path) -> None:
    for found in in_ranks(2, lambda: repr(ranks.from_first(lambda: VALUES)), tmp_path):
        assert found == repr(VALUES)


def test_what_is_no_record_is_not_sent(tmp_path: Path) -> None:
    def work() -> str:
        with pytest.raises((TypeError, DatadistillError)) as caught:
            ranks.from_first(lambda: {1, 2})
        return str(caught.value)

    assert in_ranks(2, work, tmp_path)[0] == "a set cannot be given to other ranks"


def _raises(error: Callable[[], BaseException], on: int) -> Callable[[Sequence[int]], list[int]]:
    def work(items: Sequence[int]) -> list[int]:
        if ranks.rank() == on:
            raise error()
        return list(items)

    return work


@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [
        (lambda: MemoryError("mine"), MemoryError, "out of memory on rank 1"),
        (lambda: Stopped(signal.SIGUSR1), Stopped, ""),
        (lambda: RequestError("no such thing"), DatadistillError, "rank 1 on .*: no such thing"),
        (lambda: IndexError("a bug"), DatadistillError, "rank 1 on .*: IndexError: a bug"),
    ],
    ids=["memory", "signal", "error", "bug"],
)
def test_what_goes_wrong_on_one_is_raised_on_all(
    error: Callable[[], BaseException], raised: type[BaseException], says: str, tmp_path: Path
) -> None:
    def work() -> Any:
        mine = type(error()) if ranks.rank() == 1 else raised
        with pytest.raises(mine) as caught:
            ranks.shared(_raises(error, 1), range(3))
        after = ranks.shared(list, range(3))  # they are together still
        return after, str(caught.value), getattr(caught.value, "number", 0), getattr(caught.value, "exit_code", 1)

    (after, text, number, code), other = in_ranks(2, work, tmp_path)
    assert after == other[0] == [0, 1, 2]
    assert re.match(says, text)
    assert number == other[2]
    assert code == other[3]


def test_trouble_is_told_wherever_the_others_are(tmp_path: Path) -> None:
    """Memory runs out on a rank before it comes to what is shared: the others are there already."""

    def attempt(bad: bool) -> list[int]:
        with ranks.together():
            if bad and ranks.rank() == 1:
                raise MemoryError
            return ranks.shared(list, range(4))

    def work() -> list[int]:
        with pytest.raises(MemoryError):
            attempt(bad=True)
        return attempt(bad=False)

    assert in_ranks(3, work, tmp_path) == [[0, 1, 2, 3]] * 3


def test_the_worst_of_several_counts(tmp_path: Path) -> None:
    def work() -> str:
        errors = [MemoryError(), RequestError("wrong"), Stopped(signal.SIGTERM)]
        with pytest.raises((MemoryError, DatadistillError, Stopped)) as caught, ranks.together():
            raise errors[ranks.rank()]
        return type(caught.value).__name__

    assert in_ranks(3, work, tmp_path) == ["DatadistillError", "RequestError", "DatadistillError"]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_dies_ends_the_others_with_a_sentence(lost: int, tmp_path: Path) -> None:
    def work() -> None:
        with ranks.joined():
            ranks.shared(list, range(2))
            if ranks.rank() == lost:
                os.kill(os.getpid(), signal.SIGKILL)
            ranks.shared(list, range(2))

    codes = codes_of([start(rank, 3, work, tmp_path) for rank in range(3)])
    assert codes == [-9 if rank == lost else 1 for rank in range(3)]
    said = "".join((tmp_path / f"said-{rank}").read_text() for rank in range(3))
    told = (tmp_path / "error-0").read_text() if lost else said
    assert "ended without a word" in told
    assert said.count("datadistill:") == (0 if lost else 1), "rank 0 says it as an error, or rank 1 in its place"


def test_a_rank_without_a_sign_of_life_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "SILENCE", 1.5)

    def work() -> None:
        with ranks.joined():
            ranks.shared(list, range(2))
            if ranks.rank() == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            ranks.shared(list, range(2))

    first, stopped = (start(rank, 2, work, tmp_path) for rank in range(2))
    assert codes_of([first]) == [1]
    os.kill(stopped, signal.SIGKILL)
    assert codes_of([stopped]) == [-9]
    assert "rank 1 gave no sign of life for 2 seconds" in (tmp_path / "said-0").read_text()


def _started(work: Callable[[], None], folder: Path) -> list[int]:
    """Two ranks that have said that they are ready, by a file each."""
    processes, until = [start(rank, 2, work, folder) for rank in range(2)], time.monotonic() + 20
    while len(list(folder.glob("ready-*"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    return processes


@pytest.mark.parametrize("pause", [0.03, 0.1])
def test_two_ctrl_c_end_all_wherever_they_are(pause: float, tmp_path: Path) -> None:
    def work() -> None:
        with ranks.joined(), StopRequest():
            (tmp_path / f"ready-{ranks.rank()}").touch()
            until = time.monotonic() + 20
            while ranks.from_first(lambda: time.monotonic() < until):
                ranks.shared(list, range(4))

    processes = _started(work, tmp_path)
    for _ in range(2):
        for process in processes:
            os.kill(process, signal.SIGINT)
        time.sleep(pause)  # else two would count as one
    assert codes_of(processes) == [1, 1]
    for rank in range(2):  # the second one may come when a rank is about to leave
        assert re.search(r"Stopped|KeyboardInterrupt", (tmp_path / f"error-{rank}").read_text().splitlines()[-1])


def test_a_signal_to_a_rank_that_waits_reaches_the_others(tmp_path: Path) -> None:
    def work() -> None:
        with ranks.joined(), StopRequest() as request:

            def mine(items: Sequence[int]) -> list[int]:
                (tmp_path / f"ready-{ranks.rank()}").touch()
                while ranks.rank() == 1:
                    time.sleep(0.02)
                    if number := ranks.stopped(request.requested):
                        raise Stopped(number)
                return list(items)

            ranks.shared(mine, range(2))

    processes = _started(work, tmp_path)
    os.kill(processes[0], signal.SIGTERM)
    assert codes_of(processes) == [1, 1]
    assert all("Stopped" in (tmp_path / f"error-{rank}").read_text().splitlines()[-1] for rank in range(2))


def test_a_rank_that_does_not_come_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "SECONDS_TO_MEET", 0.5)

    def work() -> None:
        with ranks.joined():
            pass

    assert codes_of([start(1, 2, work, tmp_path)]) == [1]
    assert "rank 1 of 2 does not find the others at" in (tmp_path / "error-1").read_text()


def test_one_rank_of_a_machine_goes_first(tmp_path: Path) -> None:
    place = tmp_path / "made"

    def work() -> bool:
        def make() -> bool:
            was_there = place.exists()
            place.touch()
            return was_there

        return ranks.first_here(make)

    assert in_ranks(3, work, tmp_path) == [False, True, True]


def test_a_file_that_is_not_shared_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "SECONDS_TO_SEE", 0.2)

    def work() -> str:
        path = tmp_path / f"out-{ranks.rank()}" / "config.json"
        if ranks.leads():
            path.parent.mkdir()
            path.touch()
        with pytest.raises(DatadistillError) as caught:
            ranks.wait_for([path])
        return str(caught.value)

    first, other = in_ranks(2, work, tmp_path)
    assert "does not see it: give a place for --out that all machines share" in other
    assert first.startswith("rank 1 on")


SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "123", "SLURM_LOCALID": "1"}
STEP = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[003-005,9],login1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({}, Place(0, 1)),
        (TORCHRUN | {"MASTER_ADDR": "a", "MASTER_PORT": "1"}, Place(2, 4, 0, 2, "a:1")),
        (SLURM, Place(0, 1)),
        (SLURM | STEP, Place(5, 8, 1, 4, "gpu003:20123")),
        (SLURM | STEP | {"SLURM_STEP_NODELIST": "node7", "MASTER_PORT": "9"}, Place(5, 8, 1, 4, "node7:9")),
    ],
    ids=["alone", "torchrun", "batch script", "srun", "srun on one node"],
)
def test_the_place_of_a_rank(given: dict[str, str], place: Place) -> None:
    assert place_given(given) == place


@pytest.mark.parametrize("given", [{"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}])
def test_an_impossible_place_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(RequestError, match="the environment"):
        place_given(given)

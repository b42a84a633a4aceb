"""Ranks: processes, on one machine or on several, that do one job together.

Every rank runs the whole program and draws the same numbers. What consists of items that know nothing of each other is
computed by shares (`shared`), and every rank gets all answers in the order of the items: what follows from them, such
as a sum, is the same on every rank and with any number of ranks. Rank 0 alone writes and speaks, but for what a rank
writes of its own share.

Ranks meet at the same places of the program, and what goes wrong on one is told at its next meeting, wherever the
others are by then (`together`): memory that runs out, a signal, an error. So all of them take the cheaper plan, or end,
as one.

Nothing of this happens before `join`, which programs call whose every rank does the same.
"""

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from datadistill.utils.errors import DatadistillError, Interrupted, RequestError, sentence
from datadistill.utils.interrupts import SIGNALS, Stopped, held, number_of
from datadistill.utils.place import Place, place_given
from datadistill.utils.runtime import is_out_of_memory
from datadistill.utils.values import Parts, value_of

Item = TypeVar("Item")
Answer = TypeVar("Answer")

SECONDS_TO_MEET = 300.0
"""How long the ranks of a job wait for each other at its start."""

SECONDS_TO_SEE = 60.0
"""How long a file may take from the machine that wrote it to another one."""

SILENCE = 120.0
"""Seconds without a sign of life after which a rank counts as lost."""

_BEATS, _SECONDS_TO_SAY = 24, 1.0
_FOREVER = timedelta(days=365)  # a rank may wait for hours for another that is still at work: see `_Watch`

_FINE, _MEMORY, _SIGNAL, _ERROR = range(4)
_KNOWN = "_is_known_to_all_ranks"


class RankLost(DatadistillError):
    """Another rank has ended, or cannot be reached."""


@dataclass(frozen=True, eq=False)
class _Job:
    place: Place
    watch: "_Watch"


_job: _Job | None = None
_alone = 0
"""How many times this rank is within work that others do not share."""
_tallies = 0
"""Of how many kinds of work pieces were counted; the same number on all ranks."""


def rank() -> int:
    """The number of this process among the ranks, from 0."""
    return _job.place.rank if _job else 0


def count() -> int:
    """How many ranks there are."""
    return _job.place.count if _job else 1


def count_here() -> int:
    """How many of them share this machine."""
    return _job.place.local_count if _job else 1


def are_at_hand() -> bool:
    """Whether there are other ranks, and the work at hand can be shared with them."""
    return _job is not None and not _alone


def leads() -> bool:
    """Whether this is rank 0, which alone writes and speaks."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Within it this process is a rank of its job, if it has others; what goes wrong on one ends all.

    Raises:
        RequestError: the environment contradicts itself.
        DatadistillError: the ranks do not find each other.
    """
    place = place_given()
    if place.count == 1:
        yield
        return
    _join(place)
    try:
        with together():
            yield
    except RankLost as error:
        if _is_last_word() and place.rank:
            with suppress(OSError):
                os.write(2, f"datadistill: {error}\n".encode())
        raise
    finally:
        _leave()


def _join(place: Place) -> None:
    global _job
    if not dist.is_available():
        raise DatadistillError("this PyTorch was built without torch.distributed, so several ranks cannot be had")
    try:
        store = _store(place)
        store.set(f"here/{place.rank}", "")
        store.wait([f"here/{number}" for number in range(place.count)], timedelta(seconds=SECONDS_TO_MEET))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.count, timeout=_FOREVER)
        watch = _Watch(place, _store(place))
    except (RuntimeError, ValueError, OSError) as error:
        why = sentence(str(error)).split(" Exception raised from")[0]
        raise DatadistillError(
            f"rank {place.rank} of {place.count} does not find the others at {place.address} within "
            f"{SECONDS_TO_MEET:.0f} seconds: {why}"
        ) from error
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local % torch.cuda.device_count())
    if place.local_count > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // place.local_count))
    _job = _Job(place, watch)
    watch.start()


def _store(place: Place) -> Any:
    from torch.distributed import FileStore, PrefixStore, TCPStore  # type: ignore[attr-defined]

    # A job that torchrun starts again has the same store.
    prefix, seconds = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), timedelta(seconds=SECONDS_TO_MEET)
    if "/" in place.address:
        return PrefixStore(prefix, FileStore(place.address, place.count))
    host, _, port = place.address.rpartition(":")
    # torchrun has a store at that address itself.
    serves = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = TCPStore(host, int(port), place.count, serves, seconds, multi_tenant=True, wait_for_workers=False)
    return PrefixStore(prefix, store)


def _is_last_word() -> bool:
    """Whether it is for this rank to say how the job ended: rank 0 does, or rank 1 where that is lost."""
    assert _job is not None
    if rank() > 1:
        return False
    until = time.monotonic() + _SECONDS_TO_SAY
    with suppress(RuntimeError):
        if leads():
            _job.watch.store.set("said", "1")
            return True
        while time.monotonic() < until:
            if _job.watch.store.check(["said"]):
                return False
            time.sleep(0.1)
    return True


def _leave() -> None:
    global _job
    job, _job = _job, None
    if job is not None:
        job.watch.stop()
    with suppress(RuntimeError):
        dist.destroy_process_group()


class _Watch(threading.Thread):
    """What ranks tell each other while they are at work of their own: signals, and signs of life.

    A process that dies closes its connections, which the others see at their next meeting. What ends without that, such
    as a machine without power, is missed here, while the main thread waits: then this rank ends, whose last checkpoint
    is whole.

    Signals arrive through a socket, because the main thread cannot answer one while it waits for other ranks.

    Attributes:
        signal: that a rank was sent; 0 while there was none.
        store: where ranks leave words for each other.
    """

    def __init__(self, place: Place, store: Any) -> None:
        super().__init__(daemon=True)
        self.signal, self._told = 0, False
        self._out, self._into = socket.socketpair()
        self._into.setblocking(False)
        self._before: int | None = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.set_wakeup_fd(self._into.fileno(), warn_on_full_buffer=False)
        self._place, self.store, self._over = place, store, threading.Event()
        self._seen = dict.fromkeys(range(place.count), ("", time.monotonic()))

    def run(self) -> None:
        beats, due = 0, 0.0
        while not self._over.is_set():
            if select.select([self._out], [], [], min(1.0, SILENCE / _BEATS))[0]:
                caught = [number for number in self._out.recv(64) if number in SIGNALS]
                self.signal = self.signal or next(iter(caught), 0)
            try:
                if self.signal and not self._told:
                    self.store.set("signal", str(self.signal))
                    self._told = True
                elif self.store.check(["signal"]):
                    self.signal = self.signal or int(self.store.get("signal"))
                if time.monotonic() > due:
                    due, beats = time.monotonic() + SILENCE / _BEATS, beats + 1
                    self.store.set(f"alive/{self._place.rank}", str(beats))
                    self._look()
            except RuntimeError:  # of the store's process: the main thread sees what that means for it
                continue

    def _look(self) -> None:
        now = time.monotonic()
        for number, (beat, _) in self._seen.items():
            name = f"alive/{number}"
            found = self.store.get(name).decode() if self.store.check([name]) else ""
            if found != beat:
                self._seen[number] = (found, now)
        late = [number for number, (_, when) in self._seen.items() if now - when > SILENCE]
        if late and not self._over.is_set():
            if self._place.rank == 0:
                why = f"rank {late[0]} gave no sign of life for {SILENCE:.0f} seconds; what was saved is whole"
                with suppress(OSError):
                    os.write(2, f"datadistill: {why}\n".encode())
            os._exit(1)

    def stop(self) -> None:
        self._over.set()
        if self._before is not None:
            signal.set_wakeup_fd(self._before)
        self._into.send(b"\0")
        self.join(1.0)


@contextmanager
def alone() -> Iterator[None]:
    """Within it nothing is shared: the work at hand is this rank's own."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


@contextmanager
def together() -> Iterator[None]:
    """Work that all ranks do alike, and meet after: what was raised on one of them is raised on all.

    Raises:
        MemoryError: memory ran out on a rank.
        Stopped: a rank was sent a signal.
        DatadistillError: something else went wrong on a rank.
    """
    if _job is None or _alone:
        yield
        return
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not is_known(error):
            with suppress(RankLost), held():
                _meet(error)
        raise
    with held():
        _meet(None)


def shared(work: Callable[[Sequence[Item]], list[Answer]], items: Sequence[Item]) -> list[Answer]:
    """`work(items)`, of which each rank does an equal part; every rank gets all answers.

    Args:
        work: gives an answer for each item, whatever other items it is given. Answers are tensors, numbers, text, and
            lists, tuples, dictionaries, named tuples and dataclasses of these.
        items: the same on every rank. A single one is worked on by all ranks alike, who may share what is within.

    Raises:
        MemoryError, Stopped, DatadistillError: as `together`.
    """
    if _job is None or _alone or len(items) < 2:
        return work(items)
    edges = [round(len(items) * number / count()) for number in range(count() + 1)]
    mine = items[edges[rank()] : edges[rank() + 1]]
    return [answer for answers in _gathered(lambda: work(mine) if mine else []) for answer in answers]


def from_first(make: Callable[[], Answer]) -> Answer:
    """What a function gives rank 0, on every rank; the others do not call it. Answers are those of `shared`.

    Raises:
        MemoryError, Stopped, DatadistillError: as `together`.
    """
    if _job is None or _alone:
        return make()
    return _gathered(lambda: make() if leads() else None)[0]  # type: ignore[return-value]


def first_here(make: Callable[[], Answer]) -> Answer:
    """What a function gives, on one rank of each machine first: what it leaves on the disk the others find."""
    if _job is None or _alone:
        return make()
    made = list[Answer]()
    for turn in (True, False):
        with together():
            if (_job.place.local == 0) == turn:
                with alone():
                    made.append(make())
    return made[0]


def tally() -> Callable[[], int]:
    """A function that counts one piece of work and says how many all ranks have done."""
    global _tallies
    done, _tallies = 0, _tallies + 1
    name = f"tally/{_tallies}"

    def count_one() -> int:
        nonlocal done
        done += 1
        if _job is None:
            return done
        # What every rank does is counted once; `store.add` adds up what each does by itself.
        by_itself = leads() or _alone > 0
        return int(_job.watch.store.add(name, int(by_itself)))

    return count_one


def stopped(requested: int) -> int:
    """The signal that this rank was sent, or another one; asked for now and then amid long work of a rank's own."""
    if _job is None:
        return requested
    _job.watch.signal = _job.watch.signal or requested
    return _job.watch.signal


def is_known(error: BaseException | None) -> bool:
    """Whether all ranks have met over an error; of an interrupted run, over the signal."""
    if isinstance(error, Interrupted) and is_known(error.__context__):
        return True
    return isinstance(error, RankLost) or getattr(error, _KNOWN, False)


def _gathered(make: Callable[[], Answer]) -> list[Answer]:
    """What a function gives each rank, in the order of the ranks."""
    trouble, parts = None, Parts.of(None)
    try:
        with alone():
            parts = Parts.of(make())
    except (Exception, KeyboardInterrupt) as error:
        trouble = error
    with held():
        sizes = _meet(trouble, parts.sizes)
        plain = _spread(parts.plain, [size[0] for size in sizes])
        fast = _spread(parts.fast, [size[1] for size in sizes], "cuda" if any(size[1] for size in sizes) else "cpu")
    return [value_of(one, other, size[2]) for one, other, size in zip(plain, fast, sizes, strict=True)]


def _meet(trouble: BaseException | None, sizes: Sequence[int] = (0, 0, 0)) -> list[list[int]]:
    """A meeting of all ranks: the sizes that each of them brings.

    Raises:
        BaseException: what is worst of what went wrong; what a rank has itself, it raises itself.
    """
    words = b"" if trouble is None else json.dumps(_words(trouble)).encode()
    code = _FINE if trouble is None else _code(trouble)
    brought = _all_gather(torch.tensor([code, len(words), *sizes], dtype=torch.int64))
    worst = max(int(one[0]) for one in brought)
    if worst == _FINE:
        return [one[2:].tolist() for one in brought]
    told = _spread(
        torch.frombuffer(bytearray(words or b" "), dtype=torch.uint8)[: len(words)], [int(one[1]) for one in brought]
    )
    error = trouble
    if error is None or code != worst:
        number = next(number for number, one in enumerate(brought) if int(one[0]) == worst)
        error = _error(number, json.loads(told[number].numpy().tobytes()))
    setattr(error, _KNOWN, True)
    raise error


def _code(error: BaseException) -> int:
    if is_out_of_memory(error):
        return _MEMORY
    return _SIGNAL if _signal(error) else _ERROR


def _signal(error: BaseException) -> int:
    """The signal that an error came from; 0 if it did not."""
    if isinstance(error, KeyboardInterrupt):
        return number_of(error)
    code = getattr(error, "exit_code", 0)
    return code - 128 if code > 128 else 0


def _words(error: BaseException) -> dict[str, Any]:
    text = str(error) if isinstance(error, DatadistillError) else f"{type(error).__name__}: {error}"
    words = {"text": sentence(text), "code": getattr(error, "exit_code", 1), "signal": _signal(error)}
    return words | {"memory": is_out_of_memory(error), "host": socket.gethostname()}


def _error(number: int, words: dict[str, Any]) -> BaseException:
    """Another rank's error, here."""
    where = f"rank {number} on {words['host']}"
    if words["memory"]:
        return MemoryError(f"out of memory on {where}")
    if words["signal"]:
        return Stopped(words["signal"])
    error = DatadistillError(f"{where}: {words['text']}")
    error.exit_code = words["code"]
    return error


def _all_gather(mine: Tensor) -> list[Tensor]:
    """Tensors of all ranks, of one shape."""
    everybody = [torch.empty_like(mine) for _ in range(count())]
    try:
        dist.all_gather(everybody, mine)
    except RuntimeError as error:
        raise RankLost("another rank has ended without a word, so all have; what was saved is whole") from error
    return everybody


def _spread(mine: Tensor, sizes: list[int], on: str = "cpu") -> list[Tensor]:
    """Bytes of all ranks, of so many each."""
    if max(sizes) == 0:
        return [mine[:0]] * len(sizes)
    if sizes[0] and not any(sizes[1:]):
        first = mine if leads() else torch.empty(sizes[0], dtype=torch.uint8, device=on)
        try:
            dist.broadcast(first, 0)
        except RuntimeError as error:
            raise RankLost("rank 0 has ended without a word, so all have; what was saved is whole") from error
        return [first, *[first[:0]] * (len(sizes) - 1)]
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=on)
    padded[: len(mine)] = mine
    return [part[:size] for part, size in zip(_all_gather(padded), sizes, strict=True)]


def wait_for(paths: Sequence[Path]) -> None:
    """Wait until files that some ranks have written are seen by all: a file system over the network may tell late.

    Raises:
        RequestError: naming the machine that does not see one.
    """
    if _job is None or _alone:
        return
    with together():
        until = time.monotonic() + SECONDS_TO_SEE
        while missing := [path for path in paths if not path.exists()]:
            if time.monotonic() > until:
                raise RequestError(
                    f"{missing[0]} was written by another machine, but {socket.gethostname()} does not see it: give a "
                    "place for --out that all machines share"
                )
            with suppress(OSError):
                os.listdir(missing[0].parent)  # asks a server again
            time.sleep(0.1)

"""Live progress: a bar on a terminal, a line every ten seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TypeAlias, runtime_checkable

import rich.progress
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from datadistill.utils import ranks
from datadistill.utils.errors import printable

SECONDS_BETWEEN_LINES = 10.0

_UNREAD = suppress(OSError, ValueError, AttributeError)
"""What writing raises where nobody reads, such as on a terminal that was closed: nothing ends because of that."""


@dataclass(frozen=True)
class Status:
    """Progress of a run.

    Attributes:
        step: outer steps done.
        fraction: of the whole run, 0 to 1.
        seconds: spent so far, earlier parts of a resumed run included.
        loss: mean outer loss since the last validation; None where there is no outer loss.
        accuracy: on held-out images at the last validation, or None before the first.
        rate: the outer learning rate, likewise.
        memory: peak bytes.
    """

    step: int
    fraction: float
    seconds: float
    loss: float | None
    accuracy: float | None
    rate: float | None
    memory: int

    @property
    def left(self) -> float | None:
        """Seconds left, or None while nothing is known."""
        return self.seconds * (1 - self.fraction) / self.fraction if self.fraction > 0.002 else None


@runtime_checkable
class Reporter(Protocol):
    """Listener to the progress of a run."""

    def update(self, status: Status) -> None:
        """Called after every outer step."""
        ...

    def say(self, text: str) -> None:
        """Called with a sentence worth reading."""
        ...


class Silent:
    """Reports nothing."""

    def update(self, status: Status) -> None:
        pass

    def say(self, text: str) -> None:
        pass


def clock(seconds: float | None) -> str:
    """Seconds as m:ss or h:mm:ss; `-:--` for None."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def say(text: str) -> None:
    """A line on standard error; a run does not end because nobody can read how it is doing."""
    with _UNREAD:
        print(printable(text), file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """A line on standard output."""
    print(printable(text))


def describe(status: Status) -> str:
    """One line of text."""
    held_out = "-" if status.accuracy is None else f"{100 * status.accuracy:.2f}%"
    rate = "" if status.rate is None else f"rate {status.rate:.2g}  "
    loss = "" if status.loss is None else f"loss {status.loss:.3f}  held-out {held_out}  "
    return f"step {status.step}  {loss}{rate}{clock(status.left)} left  {status.memory / 2**30:.1f} GiB"


@contextmanager
def counting(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error for `total` equal pieces of work; gives the function that counts one."""
    console, count_one = Console(stderr=True), ranks.tally()
    if console.is_terminal:
        bar = rich.progress.Progress(console=console, transient=True)
        try:
            with _UNREAD:
                bar.start()
            task = bar.add_task(escape(printable(title)), total=total)
            yield lambda: bar.update(task, completed=count_one())
        finally:
            with _UNREAD:
                bar.stop()
        return
    began = last = time.monotonic()

    def count() -> None:
        nonlocal last
        done = count_one()
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = clock((now - began) / done * (total - done))
            say(f"{title}: {done} of {total}, {left} left")

    yield count


Bar: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""What shows progress: `counting`, or `quiet`."""


@contextmanager
def quiet(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Like `counting`, but shows nothing."""
    yield lambda: None


@dataclass(frozen=True)
class Screen:
    """Who is told how something that takes long is doing.

    Attributes:
        watch: gives whoever is told how one run is doing, such as `Progress`.
        bar: shows progress of everything else.
        say: called with a sentence worth reading.
    """

    watch: Callable[[], AbstractContextManager[Reporter]] = lambda: nullcontext(Silent())
    bar: Bar = quiet
    say: Callable[[str], None] = lambda text: None


SILENT = Screen()


class Progress:
    """Writes to standard error, so that standard output stays for results."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._last_line = 0.0

    def __enter__(self) -> "Progress":
        self._last_line = time.monotonic()
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            with _UNREAD:
                self._live.stop()

    def update(self, status: Status) -> None:
        if self._live is not None:
            line = Table.grid(padding=(0, 1))
            line.add_row(ProgressBar(total=1.0, completed=status.fraction, width=10), describe(status))
            self._live.update(line)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES or status.fraction >= 1:
            self._last_line = time.monotonic()
            say(f"{100 * status.fraction:3.0f}%  {describe(status)}")

    def say(self, text: str) -> None:
        if self._live is not None:
            with _UNREAD:
                self._console.print(printable(text), markup=False, emoji=False)
        else:
            say(text)

"""Ctrl-C, and the signals by which a machine is taken away: answered between two outer steps."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
SIGNALS: tuple[int, ...] = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""Ctrl-C; what Slurm, Docker and Kubernetes end a program with; a lost terminal; Slurm's word before a time limit."""


class Stopped(KeyboardInterrupt):
    """A signal that ends what is being done; a plain `KeyboardInterrupt` is Ctrl-C.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def number_of(error: KeyboardInterrupt) -> int:
    """The signal that an interruption came from."""
    return getattr(error, "number", int(signal.SIGINT))


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """A handler: end what is being done, and clean up."""
    raise Stopped(number)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """A handler: end the program with a line, at once; for when nothing is being done that could be lost."""
    with suppress(OSError):
        os.write(2, b"datadistill: interrupted\n")
    os._exit(128 + number)


def answer_with(handler: Any) -> None:
    """Have a handler called for every signal that nobody else answers; SIGHUP is ignored under nohup, and stays so."""
    for number in SIGNALS:
        if _is_free(number):
            signal.signal(number, handler)


def _is_free(number: int) -> bool:
    return signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler, stop, leave)


class StopRequest:
    """While entered, the first signal is only kept in `requested`; Ctrl-C after it interrupts at once.

    Machines send theirs twice as often as not, so a second one of those changes nothing. A request within another is
    that other one. Outside the main thread, where signals cannot be handled, nothing changes, nor does it for signals
    other than Ctrl-C that are ignored or that the program answers itself.

    Attributes:
        requested: the signal's number; 0 while there was none.
    """

    def __init__(self) -> None:
        self.requested = self._patience = 0
        self._is_urgent = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self
        outer = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
        if isinstance(outer, StopRequest):
            return outer
        for number in SIGNALS:
            if number == signal.SIGINT or _is_free(number):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # as one that is not Python's is
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            self._is_urgent = True
            self.answer()
        self.requested = self.requested or number

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Within it a second Ctrl-C waits too."""
        self._patience += 1
        try:
            yield
        finally:
            self._patience -= 1
            self.answer()

    def answer(self) -> None:
        """Interrupt, if a second Ctrl-C has come and need not wait."""
        if self._is_urgent and not self._patience:
            self._is_urgent = False
            raise Stopped(signal.SIGINT)


@contextmanager
def held() -> Iterator[None]:
    """Signals are answered after what is done within: a library could take one for an error of its own.

    Raises:
        Stopped: there was one.
    """
    request = StopRequest()
    try:
        with request as current, current.patient():
            yield
    finally:
        if request.requested:
            raise Stopped(request.requested)

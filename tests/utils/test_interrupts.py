"""Signals within what must not be interrupted."""

import os
import signal
from collections.abc import Iterator

import pytest

from datadistill.utils.interrupts import Stopped, StopRequest, answer_with, held, stop


@pytest.fixture(autouse=True)
def _as_the_program_answers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    answer_with(stop)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def ended(done: list[str], error: Exception | None = None) -> None:
    """A signal comes amid what is held, which may then fail."""
    with held():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("read")
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [None, ValueError("a library's own, because of the signal")])
def test_a_signal_is_answered_after_what_is_held(error: Exception | None) -> None:
    done: list[str] = []
    with pytest.raises(Stopped) as found:
        ended(done, error)
    assert found.value.number == signal.SIGTERM
    assert done == ["read"]
    assert signal.getsignal(signal.SIGTERM) is stop


def test_a_run_is_asked_to_stop_once() -> None:
    with StopRequest() as request:
        with held():
            os.kill(os.getpid(), signal.SIGTERM)
        assert request.requested == signal.SIGTERM

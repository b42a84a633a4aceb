"""One reading under watch: whatever a reader must never do is a violation, in a few words."""

import io
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from datadistill.utils.errors import DatadistillError, sentence

SECONDS, BYTES = 20.0, 2 << 30
"""What one reading may take."""

_EXECUTES = (
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn"),
    *("socket.connect", "socket.getaddrinfo", "pickle.find_class"),
)
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class TooLongError(BaseException):
    """A reading takes too long; nothing that catches exceptions catches it."""


@dataclass
class Watch:
    """What the interpreter does while a reading goes on.

    Attributes:
        allowed: folders that may be written to.
        seen: what was done that must not be.
        is_on: whether a reading goes on.
    """

    allowed: tuple[str, ...] = ()
    seen: list[str] = field(default_factory=list)
    is_on: bool = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """An audit hook."""
        if not self.is_on:
            return
        if event in _EXECUTES:
            self.seen.append(f"executed {event} {args!r:.100}")
        elif event == "open" and isinstance(args[2], int) and args[2] & _WRITES:
            self._check(event, args[0])
        elif event in _CHANGES:
            paths = args[1:2] if event in ("os.symlink", "os.link") else args[:2]
            if event in ("os.remove", "os.rmdir") and args[1] >= 0:  # beside an open folder
                paths = (os.path.join(os.readlink(f"/proc/self/fd/{args[1]}"), os.fsdecode(args[0])),)
            for path in paths:
                self._check(event, path)

    def _check(self, event: str, path: Any) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            place = os.path.abspath(os.fsdecode(path))
            if not place.startswith(self.allowed) and place != os.devnull:
                self.seen.append(f"{event} of {place}, outside of the output")


WATCH = Watch()


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """While entered, there is an end to time."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def limit_memory() -> None:
    """Let this process take `BYTES` more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def violation(read: Callable[[], int | None], allowed: tuple[Path, ...], seconds: float = SECONDS) -> str:
    """What a reading did that it must not, or nothing.

    Args:
        read: gives an exit code, having said why on standard error, or raises an error that is meant for people.
        allowed: folders that it may write to.
        seconds: that it may take.
    """
    said = io.StringIO()
    WATCH.allowed, WATCH.seen, WATCH.is_on = tuple(map(str, allowed)), [], True
    try:
        with limited(seconds), redirect_stderr(said), redirect_stdout(io.StringIO()):
            code = read() or 0
    except DatadistillError as error:
        code = error.exit_code
        said.write(f"datadistill: {sentence(str(error))}\n")
    except TooLongError:
        return f"took more than {seconds:g} seconds"
    except MemoryError:
        return "took more memory than it may"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = next((one for one in reversed(frames) if "/datadistill/" in one.filename), frames[-1])
        where = f"{Path(ours.filename).name}:{ours.lineno}"
        return f"traceback: {type(error).__name__} {' '.join(str(error).split())[:160]} at {where}"
    finally:
        WATCH.is_on = False
    return WATCH.seen[0] if WATCH.seen else _speech(code, said.getvalue())


def _speech(code: int, said: str) -> str:
    """What is wrong with an exit code and what was said."""
    sentences = [line for line in said.splitlines() if line.startswith("datadistill: ")]
    if code not in (0, 1, 2):
        return f"ended with exit code {code}"
    if "Traceback" in said:
        return "a traceback in what it said"
    if len(sentences) != (code != 0):
        return f"said {len(sentences)} sentences for exit code {code}"
    if any(not line.isprintable() or len(line) > 2000 for line in sentences):
        return f"a sentence of {len(sentences[0])} characters, or with some that cannot be printed"
    if "not enough memory" in said:
        return "took more memory than it may"
    return ""


def install() -> None:
    """Watch this process from now on."""
    sys.addaudithook(WATCH)

"""Errors a person is meant to read: one sentence each, and the exit code the command line gives them."""

import difflib
import shlex
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

_MOST = 1500
"""Characters of a sentence: names and values in files are anybody's."""


class DatadistillError(Exception):
    """It ran and failed (exit code 1)."""

    exit_code = 1


class RequestError(DatadistillError, ValueError):
    """The request was wrong (exit code 2): what is wrong, what was given, what is allowed."""

    exit_code = 2


class DamagedFileError(DatadistillError):
    """A file is not what it says it is: truncated, altered, or not of this format (exit code 1)."""


class Interrupted(DatadistillError):
    """The run was interrupted and saved (exit code 128 + the signal: 130 after Ctrl-C).

    Attributes:
        folder: where the run lies.
    """

    def __init__(self, what: str, folder: Path, number: int = signal.SIGINT) -> None:
        super().__init__(f"{what} in {folder}")
        self.folder, self.exit_code = folder, 128 + number


def require(condition: bool, otherwise: str) -> None:
    """Raise DamagedFileError unless a condition holds."""
    if not condition:
        raise DamagedFileError(otherwise)


def printable(text: str) -> str:
    """A text on one line, without characters that a terminal obeys; names in files are anybody's."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def plain(text: str) -> str:
    """The same with single spaces, as prose and cells of tables have them."""
    return printable(" ".join(text.split()))


def told(value: object) -> object:
    """A value in a sentence about two settings that differ, cut off if it is endless."""
    if value is None:
        return "not given"
    text = str(value)
    return value if len(text) <= _MOST // 4 else f"{text[: _MOST // 4]} ..."


def sentence(text: str) -> str:
    """A text as `plain` gives it, without its middle if that is endless."""
    text = plain(text)
    return text if len(text) <= _MOST else f"{text[: _MOST // 2]} ... {text[-_MOST // 2 :]}"


def brief(error: BaseException) -> str:
    """An error of somebody else's code in a few words: its type, and what it says."""
    text = " ".join(str(error).split())
    place = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
    return f"{type(error).__name__}{place}: {text[:200]}" if text else type(error).__name__


def reason_of(error: BaseException) -> str:
    """What an error of somebody else's code says, on one line and not endless; its type where it says nothing."""
    text = ""
    with suppress(Exception):  # it may fail at that, too
        text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text[:200] or type(error).__name__


def some_of(names: Sequence[str], most: int = 5) -> str:
    """The first of many names, and how many more there are, for a sentence."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def how_to_install(*packages: str) -> str:
    """The command that installs packages where this program runs, whether or not there is a pip of its own."""
    python = shlex.quote(sys.executable or "python3")
    return f"python3 -m pip --python {python} install {shlex.join(packages)}"


def suggestion(given: str, known: Iterable[str]) -> str:
    """`; did you mean X?` when a known name is close to the given one, else an empty string."""
    by_folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(given.lower(), list(by_folded), n=1, cutoff=0.5)
    return f"; did you mean {by_folded[close[0]]}?" if close else ""


def unknown_name(kind: str, given: str, known: Iterable[str]) -> RequestError:
    """The error for a name that is not in a list, with the nearest one suggested."""
    names = list(known)
    return RequestError(f"unknown {kind} '{given}': there are {', '.join(names)}{suggestion(given, names)}")


def explain_os_error(error: OSError, doing: str) -> DatadistillError:
    """An operating system's refusal as one sentence, for instance a full disk while saving."""
    reason = error.strerror or str(error)
    file = str(error.filename or "")
    where = f" ({file})" if file and file not in doing and not file.endswith(".part") else ""
    return DatadistillError(f"could not {doing}: {reason}{where}")

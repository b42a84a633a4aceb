"""What a terminal is shown does nothing to it."""

import io

import pytest
from rich.console import Console

from datadistill.utils import progress
from datadistill.utils.errors import plain, printable
from datadistill.utils.progress import Progress, counting, say, tell

HOSTILE = "[red]x[/red] [/oops] \x1b[31m\x9b31m\u202e\r\nnew\tline \u2066"
SHOWN = "[red]x[/red] [/oops] ?[31m?31m?  new line ?"


def test_printable_is_one_line() -> None:
    assert printable(HOSTILE) == SHOWN
    assert plain(" a\n  b\x1b ") == "a b?"


def test_lines_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    tell(HOSTILE)
    with Progress() as bar:
        bar.say(HOSTILE)
    found = capsys.readouterr()
    assert found.err == 2 * (SHOWN + "\n")
    assert found.out == SHOWN + "\n"


def test_a_terminal_shows_brackets_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()

    def console(**options: object) -> Console:
        return Console(file=screen, force_terminal=True, width=200, color_system=None, soft_wrap=True)

    monkeypatch.setattr(progress, "Console", console)
    with counting(HOSTILE, 1) as count:
        count()
    with Progress() as bar:
        bar.say(HOSTILE)
    assert screen.getvalue().count(SHOWN) >= 2
    assert "\u202e" not in screen.getvalue()
    assert "\x1b[31m" not in screen.getvalue()

"""While it runs a run's pictures are made anew, in a small share of its time, and never end it."""

from pathlib import Path

import pytest

import datadistill as dd
from datadistill.cli.main import main
from datadistill.report.live import Refreshing
from datadistill.report.page import PAGE_NAME
from datadistill.utils.errors import DatadistillError
from datadistill.utils.progress import Silent

QUICK = dd.Outer(lr=0.03, betas=(0.5, 0.99), eval_every=5)


class Heard(Silent):
    def __init__(self, folder: Path) -> None:
        self.folder, self.said, self.seen = folder, list[str](), list[bool]()

    def update(self, status: object) -> None:
        self.seen.append((self.folder / PAGE_NAME).is_file() and (self.folder / "sheet.png").is_file())

    def say(self, text: str) -> None:
        self.said.append(text)


def run(real: dd.RealData, folder: Path) -> Heard:
    heard = Heard(folder)
    method = dd.methods.DD(images="mean", batch=64)
    reporter = Refreshing(heard, folder)
    dd.distill(
        real,
        method,
        model="mlp",
        iterations=20,
        outer=QUICK,
        device="cpu",
        out=folder,
        reporter=reporter,
    )
    heard.said = [text for text in heard.said if "fast operations" not in text]
    return heard


def test_the_page_is_there_after_the_first_look(digits: dd.RealData, tmp_path: Path) -> None:
    heard = run(digits, tmp_path / "run")
    assert heard.seen == [False] * 5 + [True] * 15
    assert heard.said == []
    assert "held-out accuracy" in (tmp_path / "run" / PAGE_NAME).read_text()


def test_it_takes_a_small_share_of_the_time(
    digits: dd.RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[Path] = []
    clock = iter(float(count) for count in range(10000))
    monkeypatch.setattr("datadistill.report.live.monotonic", lambda: next(clock))
    monkeypatch.setattr("datadistill.report.live.save_page", pages.append)
    run(digits, tmp_path / "run")
    assert len(pages) == 1  # by this clock a page takes a second, so that the next one is due 49 seconds later


def test_what_cannot_be_written_ends_no_run(
    digits: dd.RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise DatadistillError("the disk is full")

    monkeypatch.setattr("datadistill.report.live.save_page", refuse)
    heard = run(digits, tmp_path / "run")
    assert heard.said == ["the run's pictures are no longer made anew: the disk is full"]


def test_the_command_says_where_the_page_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    assert main(["distill", "--dataset", "digits", "--model", "mlp", "--iterations", "2", "--out", "run"]) == 0
    assert "report      run/report.html" in capsys.readouterr().out
    assert "test accuracy" in Path("run/report.html").read_text()

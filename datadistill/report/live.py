"""The page and the sheet of a run, made anew while it runs, in a small share of its time."""

from pathlib import Path
from time import monotonic

from datadistill.distillation.run_folder import RunFolder
from datadistill.distilled import FILE_NAME, load_distilled
from datadistill.report.page import PAGE_NAME, make_page, read_subject
from datadistill.report.sheet import SHEET_NAME, save_sheet
from datadistill.utils.files import write_atomically
from datadistill.utils.progress import Reporter, Status

_SHARE = 0.02
"""Of a run's time, at most, that pictures of it may take."""


def save_page(folder: Path) -> None:
    """Write a run folder's page, atomically."""
    write_atomically(folder / PAGE_NAME, make_page([read_subject(folder)]))


class Refreshing:
    """A reporter that tells another one, and makes pictures after validations."""

    def __init__(self, reporter: Reporter, folder: Path) -> None:
        self._reporter, self._folder, self._seen = reporter, folder, 0
        self._next, self._works = 0.0, True

    def update(self, status: Status) -> None:
        self._reporter.update(status)
        if not self._works or monotonic() < self._next:
            return
        validations = RunFolder(self._folder).metrics_size()
        if validations != self._seen:
            self._seen = validations
            self._refresh()

    def say(self, text: str) -> None:
        self._reporter.say(text)

    def _refresh(self) -> None:
        began = monotonic()
        try:
            if (self._folder / FILE_NAME).is_file():
                save_sheet(load_distilled(self._folder), self._folder / SHEET_NAME)
                save_page(self._folder)
        except Exception as error:  # hours of distilling do not end because a picture of them could not be made
            self._works = False
            self.say(f"the run's pictures are no longer made anew: {error}")
        now = monotonic()
        self._next = now + (now - began) * (1 / _SHARE - 1)

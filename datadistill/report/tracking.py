"""Experiment trackers: a run's validations and pictures in TensorBoard's event files, or in an offline run of W&B."""

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from datadistill.distillation.run_folder import RunFolder
from datadistill.distilled import FILE_NAME, load_distilled
from datadistill.report.sheet import draw_sheet
from datadistill.utils.errors import RequestError
from datadistill.utils.progress import Reporter, Status

_PICTURES = 20
"""Of a run, at most, so that its files stay small."""


class Tracker(Protocol):
    """A place that figures and pictures of a run are written to.

    Attributes:
        since: the first step that it does not have yet.
    """

    since: int

    def log(self, step: int, figures: dict[str, float]) -> None: ...
    def draw(self, step: int, picture: NDArray[np.uint8]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run folder's `tensorboard/`.

    Args:
        folder: of the run.
        step: where this part of the run begins; what the files hold from there on, of one that was killed, counts no
            more.
    """

    def __init__(self, folder: Path, step: int) -> None:
        module, place = import_module("torch.utils.tensorboard"), folder / "tensorboard"
        self.since = step if place.is_dir() else 0
        self._writer = module.SummaryWriter(str(place), purge_step=self.since or None)

    def log(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def draw(self, step: int, picture: NDArray[np.uint8]) -> None:
        self._writer.add_image("images", picture, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of W&B in the run folder's `wandb/`, which `wandb sync` uploads, if anybody asks it to.

    Args:
        folder: of the run.
        step: not used: a run that is resumed is another one there, with everything from the start.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.since = 0
        self._wandb = import_module("wandb")
        settings = self._wandb.Settings(silent=True, console="off", x_disable_stats=True)
        self._run = self._wandb.init(
            project="datadistill",
            name=folder.name,
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=RunFolder(folder).settings().as_json(),
            settings=settings,
        )

    def log(self, step: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=step)

    def draw(self, step: int, picture: NDArray[np.uint8]) -> None:
        self._run.log({"images": self._wandb.Image(picture)}, step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, tuple[type[TensorBoard] | type[WandB], str]] = {
    "tensorboard": (TensorBoard, "tensorboard"),
    "wandb": (WandB, "wandb"),
}
"""By the name that people type: what writes, and the package that it needs."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not known, or whose packages are not installed, before anything is computed."""
    for name in names:
        if name not in TRACKERS:
            raise RequestError(f"there is no tracker '{name}': --track takes {', '.join(TRACKERS)}")
        try:
            import_module(TRACKERS[name][1])
        except ImportError as error:
            raise RequestError(f"tracker {name} needs the extra `track`: pip install '.[track]'") from error


class Tracking:
    """Reporter that tells another one, and trackers after each validation.

    Used as a context manager, which closes the trackers. A tracker that fails is left out from then on, and the run
    goes on.

    Args:
        reporter: is told everything.
        folder: of the run.
        names: of trackers.

    Raises:
        RequestError: a tracker is not known, or its package is not installed.
    """

    def __init__(self, reporter: Reporter, folder: Path, names: Sequence[str]) -> None:
        check_trackers(names)
        self._reporter, self._folder, self._names = reporter, folder, names
        self._trackers: dict[str, Tracker] = {}
        self._first, self._logged, self._size, self._drawn = 0, -1, 0, -1.0

    def update(self, status: Status) -> None:
        self._reporter.update(status)
        if not self._names:
            return
        self._first = self._first or status.step
        size = RunFolder(self._folder).metrics_size()
        if size != self._size:
            self._size = size
            self._log(status.fraction)

    def say(self, text: str) -> None:
        self._reporter.say(text)

    def _log(self, fraction: float) -> None:
        entries = [entry for entry in RunFolder(self._folder).metrics() if entry["step"] > self._logged]
        for name in self._names:
            try:
                self._log_to(name, entries, fraction >= self._drawn + 1 / _PICTURES)
            except Exception as error:  # hours of distilling do not end because nobody could be told of them
                self._names = [other for other in self._names if other != name]
                self.say(f"tracker {name} is left out from now on: {error}")
        self._logged = max([self._logged, *(entry["step"] for entry in entries)])
        if fraction >= self._drawn + 1 / _PICTURES:
            self._drawn = fraction

    def _log_to(self, name: str, entries: list[dict[str, Any]], drawing: bool) -> None:
        if name not in self._trackers:
            self._trackers[name] = TRACKERS[name][0](self._folder, self._first)
        tracker = self._trackers[name]
        for entry in entries:
            if entry["step"] >= tracker.since:
                tracker.log(entry["step"], _figures(entry))
        if drawing and entries and (self._folder / FILE_NAME).is_file():
            tracker.draw(entries[-1]["step"], np.asarray(draw_sheet(load_distilled(self._folder))))

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._names and self._first:
            self._log(1.0)
        for tracker in self._trackers.values():
            tracker.close()


def _figures(entry: dict[str, Any]) -> dict[str, float]:
    """The numbers of a validation, by name; learning rates with the number of their step."""
    figures = {name: value for name, value in entry.items() if isinstance(value, int | float) and name != "step"}
    return figures | {f"learning_rates/{t}": rate for t, rate in enumerate(entry.get("learning_rates") or [])}

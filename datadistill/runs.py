"""Run folders: settings, metrics, checkpoints. Everything written can be read at any moment."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from datadistill.errors import DamagedFileError, RequestError, explain_os_error
from datadistill.files import read_json, read_tensors, write_atomically, write_json, write_tensors

if sys.platform != "win32":
    import fcntl

FORMAT = 1
KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class Settings:
    """Everything needed to run again.

    Attributes:
        dataset: the dataset's name.
        model: the network's name.
        weights: the kind of initial weights.
        scheme: how they are drawn.
        ipc: images per class.
        seed: of all randomness.
        method: name and hyper-parameters.
        outer: the outer loop's hyper-parameters.
        iterations: outer steps, or None.
        budget: seconds, or None.
        device: cpu, cuda or mps.
        versions: of the software that started the run; not compared on resuming.
    """

    dataset: str
    model: str
    weights: str
    scheme: str
    ipc: int
    seed: int
    method: dict[str, Any]
    outer: dict[str, Any]
    iterations: int | None
    budget: float | None
    device: str
    versions: dict[str, str] = field(default_factory=dict)

    def difference(self, other: "Settings") -> str | None:
        """The first setting in which two runs differ, in words, or None."""
        mine, theirs = (json.loads(json.dumps(asdict(s) | {"versions": {}})) for s in (self, other))
        for name in mine:
            if mine[name] != theirs[name]:
                return f"{name} is {_brief(mine[name], theirs[name])} there and {_brief(theirs[name], mine[name])} here"
        return None


def _brief(value: Any, other: Any) -> Any:
    if isinstance(value, dict) and isinstance(other, dict):
        return {key: value[key] for key in value if value[key] != other.get(key)}
    return value


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a run: tensors by name, and JSON."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """A folder with one run in it.

    `config.json`, `metrics.jsonl` (one line per look), `checkpoint/` (the last two), `distilled.safetensors` (best on
    held-out data), `log.txt`; the command line adds `sheet.png`, `curve.png` and `README.md`.
    """

    path: Path

    @property
    def _config(self) -> Path:
        return self.path / "config.json"

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoint"

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self._config.is_file()

    def begin(self, settings: Settings) -> None:
        """Start a run in a new or empty folder.

        Raises:
            RequestError: a run is there already.
            DatadistillError: the folder cannot be written.
        """
        if self.exists():
            raise RequestError(f"{self.path} holds a run already: add --resume to go on with it, or give another --out")
        write_json(self._config, {"format": FORMAT, **asdict(settings)})

    def settings(self) -> Settings:
        """The settings the run was started with.

        Raises:
            RequestError: there is no run.
            DamagedFileError: `config.json` is damaged.
        """
        if not self.exists():
            raise RequestError(f"there is no run to resume in {self.path}")
        document = read_json(self._config)
        try:
            if document.pop("format") != FORMAT:
                raise ValueError("another format")
            return Settings(**document)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DamagedFileError(f"{self._config} is damaged: {error}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, so that no second process writes the same run; freed when the process ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise explain_os_error(error, f"write to {self.path}") from error
        try:
            if sys.platform != "win32":
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise RequestError(
                f"another process is running in {self.path}: wait for it, or give another --out"
            ) from error
        try:
            yield
        finally:
            os.close(handle)

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then delete all but the last two."""
        write_tensors(
            self._checkpoints / f"step-{step:09d}.safetensors",
            checkpoint.tensors,
            {"checkpoint": json.dumps(checkpoint.facts)},
        )
        for old in self._saved()[:-KEPT_CHECKPOINTS]:
            old.unlink(missing_ok=True)

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that can be read, and a sentence for each newer one that cannot."""
        complaints: list[str] = []
        for path in reversed(self._saved()):
            try:
                tensors, metadata = read_tensors(path)
                return Checkpoint(tensors, json.loads(metadata["checkpoint"])), complaints
            except (DamagedFileError, KeyError, ValueError) as error:
                complaints.append(f"{path.name} cannot be read and is passed over: {error}")
        return None, complaints

    def _saved(self) -> list[Path]:
        return sorted(self._checkpoints.glob("step-*.safetensors"))

    def record(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        self._append(self._metrics, json.dumps(metrics, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of `metrics.jsonl`."""
        if not self._metrics.is_file():
            return []
        return [json.loads(line) for line in self._metrics.read_text().splitlines()]

    def rewind(self, step: int) -> None:
        """Forget metrics after a step, which a resumed run is about to make again."""
        lines = [json.dumps(entry) + "\n" for entry in self.metrics() if entry["step"] <= step]
        write_atomically(self._metrics, "".join(lines).encode())

    def log(self, text: str) -> None:
        """Append one line to `log.txt`."""
        self._append(self.path / "log.txt", text + "\n")

    def _append(self, path: Path, text: str) -> None:
        # One write call for the whole line: a kill comes before it or after it, so no half line is left.
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(handle, text.encode())
            finally:
                os.close(handle)
        except OSError as error:
            raise explain_os_error(error, f"write {path}") from error

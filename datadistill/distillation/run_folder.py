"""Run folders: settings, metrics, checkpoints. Everything written can be read at any moment."""

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from datadistill.distillation.settings import Settings, parse_settings
from datadistill.utils.errors import DamagedFileError, RequestError, explain_os_error, printable
from datadistill.utils.files import (
    digest_of,
    locked,
    read_json,
    read_tensors,
    refuse_links,
    write_atomically,
    write_json,
    write_tensors,
)
from datadistill.utils.schema import parse_json

CONFIG_NAME = "config.json"
KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class Checkpoint:
    """A saved run state: tensors by name, and JSON."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def digest(self) -> str:
        """SHA-256 of all of it."""
        return digest_of(self.tensors, json.dumps(self.facts))


@dataclass(frozen=True)
class RunFolder:
    """A folder with one run in it.

    `config.json`, `metrics.jsonl` (a line per validation), `checkpoint/` (the last two), `distilled.safetensors` (best
    on held-out data), `history.safetensors` (some moments of the images) and `log.txt`; the command line adds
    `report.html`, `sheet.png`, `curve.png` and `README.md`.

    Attributes:
        path: of the folder.
        check: raises an error once the folder that is held has been removed.
    """

    path: Path
    check: Callable[[], None] = lambda: None

    @property
    def _config(self) -> Path:
        return self.path / CONFIG_NAME

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoint"

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self._config.is_file()

    def check_free(self) -> None:
        """Refuse a folder that holds something: nothing of a user's is ever overwritten.

        Raises:
            RequestError: it holds a run or other files.
        """
        if self.exists():
            raise RequestError(f"{self.path} holds a run already: add --resume to go on with it, or give another --out")
        if self.path.is_dir() and any(not _is_leftover(entry.name) for entry in self.path.iterdir()):
            raise RequestError(f"{self.path} is not empty: give a new folder with --out")

    def begin(self, settings: Settings) -> None:
        """Start a run in a new or empty folder.

        Raises:
            RequestError: the folder is not empty.
            DatadistillError: the folder cannot be written.
        """
        self.check_free()
        write_json(self._config, settings.as_json())

    def settings(self) -> Settings:
        """The settings the run was started with.

        Raises:
            RequestError: there is no run.
            DamagedFileError: `config.json` is damaged.
        """
        if not self.exists():
            raise RequestError(f"there is no run to resume in {self.path}")
        try:
            return parse_settings(read_json(self._config))
        except DamagedFileError as error:
            raise DamagedFileError(f"{self._config} is damaged: {error}") from error

    @contextmanager
    def locked(self) -> Iterator["RunFolder"]:
        """Hold the folder (`utils.files.locked`); gives one that refuses to write once it has been removed.

        Raises:
            RequestError: another process holds it, it holds something else than a run, or it holds a link.
            DatadistillError: it cannot be written.
        """
        if not self.exists():
            self.check_free()
        refuse_links(self.path)
        with locked(self.path) as check:
            yield replace(self, check=check)

    def place(self, name: str) -> Path:
        """Where a file of the run goes.

        Raises:
            DatadistillError: the folder has been removed.
        """
        self.check()
        return self.path / name

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then delete all but the last two."""
        self.check()
        metadata = {"checkpoint": json.dumps(checkpoint.facts), "sha256": checkpoint.digest()}
        write_tensors(self._checkpoints / f"step-{step:09d}.safetensors", checkpoint.tensors, metadata)
        for old in self._saved()[:-KEPT_CHECKPOINTS]:
            old.unlink(missing_ok=True)

    def forget(self, step: int) -> None:
        """Delete the checkpoint of a step."""
        (self._checkpoints / f"step-{step:09d}.safetensors").unlink(missing_ok=True)

    def change(self, settings: Settings) -> None:
        """Write other settings over those that the run was started with."""
        write_json(self.place(self._config.name), settings.as_json())

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and a sentence for each newer one that is not."""
        complaints: list[str] = []
        for path in reversed(self._saved()):
            try:
                tensors, metadata = read_tensors(path)
                checkpoint = Checkpoint(tensors, parse_json(metadata.get("checkpoint", "null")))
                if checkpoint.digest() != metadata.get("sha256"):
                    raise DamagedFileError("its checksum differs")
                return checkpoint, complaints
            except (DamagedFileError, ValueError) as error:
                complaints.append(f"{path.name} is damaged and passed over: {error}")
        return None, complaints

    def _saved(self) -> list[Path]:
        return sorted(self._checkpoints.glob("step-*.safetensors"))

    def record(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        self._append(self._metrics, json.dumps(metrics, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of `metrics.jsonl` that can be read; nothing but the curve depends on them."""
        if not self._metrics.is_file():
            return []
        entries = []
        for line in self._metrics.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                entry = parse_json(line)
                if isinstance(entry, dict) and type(entry.get("step")) is int and _is_plain(entry):
                    entries.append(entry)
        return entries

    def metrics_size(self) -> int:
        """Bytes of `metrics.jsonl`, which each validation changes."""
        return self._metrics.stat().st_size if self._metrics.is_file() else 0

    def rewind(self, step: int) -> None:
        """Forget metrics after a step, which a resumed run is about to make again."""
        lines = [json.dumps(entry) + "\n" for entry in self.metrics() if entry["step"] <= step]
        write_atomically(self._metrics, "".join(lines).encode())

    def log(self, text: str) -> None:
        """Append one line to `log.txt`."""
        self._append(self.path / "log.txt", printable(text) + "\n")

    def _append(self, path: Path, text: str) -> None:
        self.check()
        # One write call for the whole line: a kill comes before it or after it. A full disk may take a part of it,
        # which is taken back.
        try:
            # Without waiting, because a pipe that somebody put there has no reader.
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0)
            handle = os.open(path, flags, 0o666)
            try:
                size, line = os.fstat(handle).st_size, text.encode()
                if os.write(handle, line) != len(line):
                    os.ftruncate(handle, size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(handle)
        except OSError as error:
            raise explain_os_error(error, f"write {path}") from error


def _is_plain(entry: dict[str, Any]) -> bool:
    """Whether a line of metrics has numbers, and a list of them for learning rates if there are any."""
    rates = entry.get("learning_rates") or []
    numbers = [value for name, value in entry.items() if name != "learning_rates"]
    return isinstance(rates, list) and all(type(value) in (int, float) for value in [*numbers, *rates])


def _is_leftover(name: str) -> bool:
    """Whether it is what a run killed before its first word leaves behind."""
    return name == ".lock" or (name.startswith(".") and name.endswith(".part"))

"""Trackers hold what the run's own metrics hold, also of a run that was killed and resumed, and never end a run."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import datadistill as dd
from datadistill.cli.main import main
from datadistill.distillation.run_folder import RunFolder
from datadistill.report.tracking import TRACKERS, TensorBoard, Tracking
from datadistill.utils.errors import Interrupted
from datadistill.utils.progress import Silent, Status

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
QUICK = dd.Outer(lr=0.03, betas=(0.5, 0.99), eval_every=5)


class Listening(Silent):
    def __init__(self, stop_at: int | None = None) -> None:
        self.said, self.stop_at = list[str](), stop_at

    def update(self, status: Status) -> None:
        if status.step == self.stop_at:
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        self.said.append(text)


def run(real: dd.RealData, folder: Path, trackers: list[str], reporter: Listening, resume: bool = False) -> None:
    method = dd.methods.DD(images="mean", batch=64)
    with Tracking(reporter, folder, trackers) as tracking:
        dd.distill(
            real,
            method,
            model="mlp",
            iterations=20,
            outer=QUICK,
            device="cpu",
            out=folder,
            reporter=tracking,
            resume=resume,
        )


def read(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], list[bytes]]:
    """Figures by name, and pictures, as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    figures = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    return figures, [event.encoded_image_string for event in events.Images("images")]


def expected(folder: Path) -> dict[str, list[tuple[int, float]]]:
    entries = RunFolder(folder).metrics()
    names = [name for name, value in entries[0].items() if isinstance(value, int | float) and name != "step"]
    figures = {name: [(entry["step"], entry[name]) for entry in entries] for name in names}
    for t in range(len(entries[0]["learning_rates"])):
        figures[f"learning_rates/{t}"] = [(entry["step"], entry["learning_rates"][t]) for entry in entries]
    return figures


def check(folder: Path) -> None:
    figures, pictures = read(folder)
    wanted = expected(folder)
    assert figures.keys() == wanted.keys()
    assert len(wanted["held_out_accuracy"]) >= 4
    for name, values in wanted.items():
        assert [step for step, _ in figures[name]] == [step for step, _ in values]
        assert np.allclose([value for _, value in figures[name]], [value for _, value in values])
    assert pictures[0].startswith(b"\x89PNG")


def test_tensorboard_reads_what_the_run_recorded(digits: dd.RealData, tmp_path: Path) -> None:
    run(digits, tmp_path / "run", ["tensorboard"], Listening())
    check(tmp_path / "run")


def test_a_run_that_was_interrupted_and_resumed_is_whole(digits: dd.RealData, tmp_path: Path) -> None:
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        run(digits, tmp_path / "run", ["tensorboard"], Listening(stop_at=12))
    run(digits, tmp_path / "run", ["tensorboard"], Listening(), resume=True)
    check(tmp_path / "run")


def test_one_that_was_not_tracked_at_first_has_all_too(digits: dd.RealData, tmp_path: Path) -> None:
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        run(digits, tmp_path / "run", [], Listening(stop_at=12))
    run(digits, tmp_path / "run", ["tensorboard"], Listening(), resume=True)
    check(tmp_path / "run")


def test_a_tracker_that_fails_ends_no_run(digits: dd.RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(TensorBoard, "log", fail)
    reporter = Listening()
    run(digits, tmp_path / "run", ["tensorboard"], reporter)
    assert [text for text in reporter.said if "tracker" in text] == [
        "tracker tensorboard is left out from now on: the disk is full"
    ]
    assert len(RunFolder(tmp_path / "run").metrics()) >= 4


def records(content: bytes) -> Iterator[bytes]:
    """The records of a file of W&B: LevelDB's log format after seven bytes, in blocks of 32 KiB."""
    assert content.startswith(b":W&B")
    place, whole = 7, b""
    while place + 7 < len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


@pytest.mark.slow
def test_wandb_keeps_the_run_offline(digits: dd.RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run(digits, tmp_path / "run", ["wandb"], Listening())
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # as the end of the program does: what it wrote is on the disk
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    found, said = list[tuple[int, float]](), list[str]()
    for data in records(kept.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if "held_out_accuracy" in items:
            found.append((int(json.loads(items["_step"])), json.loads(items["held_out_accuracy"])))
        said += list(items)
    assert found == expected(tmp_path / "run")["held_out_accuracy"]
    assert "images/path" in said


def test_the_command_takes_trackers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    monkeypatch.chdir(tmp_path)
    flags = ["distill", "--dataset", "digits", "--model", "mlp", "--iterations", "10", "--nets", "1", "--out", "run"]
    assert main([*flags, "--track", "TensorBoard"]) == 0
    assert "held_out_accuracy" in read(tmp_path / "run")[0]
    assert "--track" not in dd.load_distilled("run").provenance.recipe
    assert main([*flags, "--track", "tensorbord"]) == 2
    assert capsys.readouterr().err.strip().endswith("--track takes tensorboard, wandb")


def test_what_is_not_installed_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRACKERS, "wandb", (TRACKERS["wandb"][0], "a_package_that_nobody_has"))
    with pytest.raises(dd.RequestError, match=r"needs the extra `track`: pip install '\.\[track\]'"):
        Tracking(Silent(), tmp_path, ["wandb"])

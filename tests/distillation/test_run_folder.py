"""Run folders: settings, locks, damaged checkpoints."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import codes_of, start

import datadistill as dd
from datadistill.distillation.run_folder import RunFolder
from datadistill.methods import METHODS
from datadistill.utils.errors import DamagedFileError, RequestError
from datadistill.utils.files import read_tensors, write_tensors

OUTER = dd.Outer(lr=0.03, eval_every=10)


def run(real: dd.RealData, out: Path, **options: Any) -> dd.Run:
    options = {"iterations": 40, "outer": OUTER, "device": "cpu"} | options
    return dd.distill(real, dd.methods.DD(images="mean", batch=64), model="mlp", out=out, **options)


def test_a_run_is_not_overwritten(digits: dd.RealData, tmp_path: Path) -> None:
    run(digits, tmp_path)
    with pytest.raises(RequestError, match="holds a run already"):
        run(digits, tmp_path)


def test_two_checkpoints_are_kept(digits: dd.RealData, tmp_path: Path) -> None:
    run(digits, tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoint").iterdir()) == [
        "step-000000030.safetensors",
        "step-000000040.safetensors",
    ]
    assert [entry["step"] for entry in RunFolder(tmp_path).metrics()] == [10, 20, 30, 40]


def test_a_finished_run_resumes_to_itself(digits: dd.RealData, tmp_path: Path) -> None:
    first = run(digits, tmp_path)
    again = run(digits, tmp_path, resume=True)
    assert again.steps == 40
    assert torch.equal(first.distilled.images, again.distilled.images)


def test_resuming_with_other_settings_is_refused(digits: dd.RealData, tmp_path: Path) -> None:
    run(digits, tmp_path)
    with pytest.raises(RequestError, match=r"seed is 0 there and 1 here"):
        run(digits, tmp_path, resume=True, seed=1)
    with pytest.raises(RequestError, match=r"'lr': 0\.03"):
        run(digits, tmp_path, resume=True, outer=replace(OUTER, lr=0.1))


def test_a_damaged_checkpoint_is_passed_over(digits: dd.RealData, tmp_path: Path) -> None:
    whole = run(digits, tmp_path / "whole")
    run(digits, tmp_path / "cut")
    newest = tmp_path / "cut" / "checkpoint" / "step-000000040.safetensors"
    newest.write_bytes(newest.read_bytes()[:-50])
    said: list[str] = []

    class Heard:
        def update(self, status: Any) -> None:
            pass

        def say(self, text: str) -> None:
            said.append(text)

    resumed = run(digits, tmp_path / "cut", resume=True, reporter=Heard())
    assert "passed over" in said[0]
    assert "at step 30" in said[1]
    assert torch.equal(whole.distilled.images, resumed.distilled.images)


def test_damaged_settings(digits: dd.RealData, tmp_path: Path) -> None:
    run(digits, tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    altered = ({"seed": "0"}, {"model": 7}, {"method": {}}, {"more": 1}, {"format": 9}, {"ipc": None})
    for text in ("{", "[]", "{}", *(json.dumps(whole | change) for change in altered)):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(DamagedFileError, match=r"config\.json is damaged"):
            run(digits, tmp_path, resume=True)


def test_a_folder_from_before_there_was_a_choice_goes_on(digits: dd.RealData, tmp_path: Path) -> None:
    """The first files of format 1 have neither the options nor the facts that came later."""
    first = run(digits, tmp_path)
    file = tmp_path / "config.json"
    document = json.loads(file.read_text())
    for name in (
        *("engine", "batch_norm", "attack", "pool", "pool_digest", "source", "trajectories", "trajectories_digest"),
        *("zca", "kernels"),
    ):
        del document[name]
    del document["outer"]["settle"], document["method"]["network_clip"]
    file.write_text(json.dumps(document))
    again = run(digits, tmp_path, resume=True)
    assert torch.equal(first.distilled.images, again.distilled.images)
    assert RunFolder(tmp_path).settings().config(tmp_path).method == dd.methods.DD(images="mean", batch=64)
    for name in ("seed", "outer", "versions"):
        file.write_text(json.dumps({key: value for key, value in document.items() if key != name}))
        with pytest.raises(DamagedFileError, match=f"'{name}' is missing"):
            run(digits, tmp_path, resume=True)


@pytest.mark.parametrize("name", ["config", "variables.values:images"])
def test_an_altered_checkpoint_is_passed_over(digits: dd.RealData, tmp_path: Path, name: str) -> None:
    run(digits, tmp_path)
    newest = tmp_path / "checkpoint" / "step-000000040.safetensors"
    tensors, metadata = read_tensors(newest)
    if name == "config":
        metadata["checkpoint"] = metadata["checkpoint"].replace('"rollbacks": 0', '"rollbacks": 1')
    else:
        tensors[name] += 1
    write_tensors(newest, tensors, metadata)
    checkpoint, complaints = RunFolder(tmp_path).latest()
    assert checkpoint is not None
    assert checkpoint.facts["step"] == 30
    assert "its checksum differs" in complaints[0]


def test_a_folder_with_something_else_in_it_is_refused(digits: dd.RealData, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(RequestError, match="is not empty"):
        run(digits, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "my project"


def test_damaged_metrics_do_not_matter(digits: dd.RealData, tmp_path: Path) -> None:
    whole = run(digits, tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "sec\n[1]\n7\n')
    again = run(digits, tmp_path, resume=True)
    assert torch.equal(whole.distilled.images, again.distilled.images)


def test_a_line_that_does_not_fit_on_the_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, write = RunFolder(tmp_path), os.write
    folder.record({"step": 1})
    with monkeypatch.context() as patched:
        patched.setattr("os.write", lambda handle, line: write(handle, line[:5]))
        with pytest.raises(dd.DatadistillError, match="No space left"):
            folder.record({"step": 2})
    folder.record({"step": 3})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 3}\n'


def test_the_recorded_command_survives_a_resume(digits: dd.RealData, tmp_path: Path) -> None:
    run(digits, tmp_path, command="datadistill distill --dataset digits")
    again = run(digits, tmp_path, resume=True, command="datadistill distill --resume")
    assert again.distilled.provenance.recipe == "datadistill distill --dataset digits"


def test_one_process_at_a_time(digits: dd.RealData, tmp_path: Path) -> None:
    with RunFolder(tmp_path).locked(), pytest.raises(RequestError, match="another process"):
        run(digits, tmp_path)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_is_removed_ends_the_run_and_stays_removed(
    replaced: bool, digits: dd.RealData, tmp_path: Path
) -> None:
    class Remove:
        def update(self, status: Any) -> None:
            if status.step == 17:
                shutil.rmtree(tmp_path / "run")
                if replaced:
                    with RunFolder(tmp_path / "run").locked():
                        pass
                os.kill(os.getpid(), signal.SIGINT)

        def say(self, text: str) -> None:
            pass

    with pytest.raises(dd.DatadistillError, match="run was removed while it was written to"):
        run(digits, tmp_path / "run", reporter=Remove())
    assert [path.name for path in tmp_path.rglob("*") if path.name != ".lock"] == ["run"] * replaced


def test_a_folder_that_is_removed_between_two_pieces(digits: dd.RealData, tmp_path: Path) -> None:
    class Remove:
        def update(self, status: Any) -> None:
            if status.step == 3:
                shutil.rmtree(tmp_path / "run")

        def say(self, text: str) -> None:
            pass

    method = METHODS.get("random_teacher").build({})
    with pytest.raises(dd.DatadistillError, match="run was removed while it was written to"):
        dd.distill(digits, method, model="mlp", weights="random-init", iterations=1, out=tmp_path / "run",
                   reporter=Remove())  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_killed_and_resumed(digits: dd.RealData, tmp_path: Path) -> None:
    """SIGKILL after a look: every file can be read, and the end is the same; `benchmarks/kills.py` has more."""

    class Kill:
        def update(self, status: Any) -> None:
            if status.step == 33:
                os.kill(os.getpid(), signal.SIGKILL)

        def say(self, text: str) -> None:
            pass

    whole, folder = run(digits, tmp_path / "whole").distilled, tmp_path / "cut"
    assert codes_of([start(0, 1, lambda: run(digits, folder, reporter=Kill()), tmp_path)]) == [-signal.SIGKILL]
    RunFolder(folder).settings()
    assert RunFolder(folder).latest()[1] == []
    resumed = run(digits, folder, resume=True).distilled
    assert torch.equal(whole.images, resumed.images)
    assert whole.learning_rates is not None
    assert resumed.learning_rates is not None
    assert torch.equal(whole.learning_rates, resumed.learning_rates)


@pytest.mark.parametrize("name", ["checkpoint", "pieces", "metrics.jsonl", "log.txt", ".lock", "distilled.safetensors"])
def test_nothing_is_written_or_deleted_through_a_link(digits: dd.RealData, tmp_path: Path, name: str) -> None:
    """A run folder from a stranger may hold links to what is somebody else's."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    run(digits, mine, iterations=20)
    run(digits, theirs, iterations=10)
    kept = {path.name: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    for path in [theirs / name, *theirs.glob(f"{name}/*")][::-1]:
        if path.exists():
            path.rmdir() if path.is_dir() else path.unlink()
    (theirs / name).symlink_to(mine / name)
    with pytest.raises(RequestError, match=rf"{name} is a link, and nothing is written or deleted through one"):
        run(digits, theirs, iterations=10, resume=True)
    assert {path.name: path.read_bytes() for path in mine.rglob("*") if path.is_file()} == kept


def test_a_lock_that_is_left_behind_may_not_be_a_link(digits: dd.RealData, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(RequestError, match="is a link"):
        run(digits, tmp_path / "run")
    assert not (tmp_path / "made").exists()

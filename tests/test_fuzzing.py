"""Damaged files of every kind do nothing that they must not; and what they must not do would be noticed."""

import json
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from conftest import ROOT
from fuzz import examples
from fuzzing.__main__ import _forked
from fuzzing.damage import Evil, damage
from fuzzing.guard import install, violation

from datadistill.utils.errors import RequestError


@pytest.mark.fuzz
def test_damaged_files_of_every_kind() -> None:
    command = [sys.executable, "-m", "fuzzing", "--inputs", str(examples(450)), "--seed", "0"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert json.loads(done.stdout)["violations"] == [], done.stderr


def speak(*lines: str) -> int:
    print("\n".join(lines), file=sys.stderr)
    return 2


def busy() -> None:
    while True:
        try:
            time.sleep(0.01)
        except Exception:  # as a reader may that goes on with the next file
            continue


VIOLATIONS: dict[str, tuple[Callable[[], object], str]] = {
    "writes": (lambda: Path("ran").write_text(""), "outside of the output"),
    "makes a folder": (lambda: os.mkdir("ran"), "os.mkdir of .*ran, outside"),
    "removes": (lambda: Path("here").unlink(), "os.remove of .*here, outside"),
    "starts a program": (lambda: subprocess.run(["true"], check=True).returncode, "executed subprocess.Popen"),
    "unpickles": (lambda: pickle.loads(pickle.dumps(Evil())), "executed pickle.find_class"),
    "takes long": (busy, "took more than 0.5 seconds"),
    "takes memory": (lambda: bytearray(1 << 62), "more memory"),
    "fails": (lambda: 1 // 0, "traceback: ZeroDivisionError"),
    "leaves": (lambda: sys.exit("gone"), "traceback: SystemExit"),
    "has another code": (lambda: 3, "exit code 3"),
    "says nothing": (lambda: 2, "said 0 sentences"),
    "says too much": (lambda: speak("datadistill: a", "datadistill: b"), "said 2 sentences"),
    "says it endlessly": (lambda: speak("datadistill: " + "a" * 3000), "a sentence of 3013 characters"),
    "says it in colour": (lambda: speak("datadistill: \x1b[31m"), "cannot be printed"),
    "shows its insides": (lambda: speak("Traceback (most recent call last)", "datadistill: a"), "a traceback in"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    (tmp_path / "out").mkdir()
    install()
    return tmp_path


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_noticed(name: str, folder: Path) -> None:
    act, what = VIOLATIONS[name]
    found = violation(act, (folder / "out",), 0.5)  # type: ignore[arg-type]
    assert re.search(what, found), found


def refuse() -> int:
    raise RequestError("it is no file")


@pytest.mark.parametrize(
    "act", [lambda: 0, lambda: speak("a remark", "datadistill: it is no file"), refuse, lambda: Path("out/x").touch()]
)
def test_what_is_allowed_is_no_violation(act: Callable[[], int | None], folder: Path) -> None:
    assert violation(act, (folder / "out",)) == ""


@pytest.mark.filterwarnings("ignore")
def test_a_death_is_noticed_and_the_next_input_is_read() -> None:
    found: list[dict[str, object]] = []
    assert _forked(lambda write: (os.write(write, b'""\n'), os.kill(os.getpid(), 9)), [5, 6, 7], found) == 2
    assert found == [{"number": 6, "what": "the process died (9)"}]


def test_the_same_number_gives_the_same_damage(tmp_path: Path) -> None:
    contents = []
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.json").write_text('{"a": [1, 2, {"b": "c"}], "d": 0.5}')
        for number in range(20):
            damage(tmp_path / name, [], Random(f"0 {number}"))
        contents.append(
            [(path.name, path.is_file() and path.read_bytes()) for path in sorted((tmp_path / name).iterdir())]
        )
    assert contents[0] == contents[1]

"""A method of the user's own, named by its file."""

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

import datadistill as dd
from datadistill.cli.main import main
from datadistill.methods import METHODS

PAGE = (ROOT / "docs" / "your-method.md").read_text()
CODE = (
    re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    + """

class NoMethod:
    pass


@dataclass(frozen=True)
class Half:
    name: str = "half"
"""
)
FLAGS = ["--dataset", "digits", "--model", "mlp", "--nets", "1"]


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    monkeypatch.setattr(METHODS, "records", METHODS.records)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)


def test_a_method_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--method", "mine.py:Towards", "--strength", "2", "--iterations", "40", "--outer-lr", "0.1"]
    assert main(["distill", *FLAGS, *flags, "--out", "run"]) == 0
    data = dd.load_distilled("run")
    assert data.provenance.method["name"] == "towards"
    assert data.provenance.method["strength"] == 2
    assert "--method mine.py:Towards" in shlex.join(shlex.split(data.provenance.recipe))
    settings = json.loads(Path("run/config.json").read_text())
    assert settings["method"]["name"] == "towards"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nobody.py:Towards", "there is no file nobody.py to take the method from"),
        ("mine.py:Nothing", "unknown function of mine.py"),
        ("mine.py:NoMethod", "it must be a MethodInfo or a frozen dataclass"),
        ("mine.py:Half", "it has no resolve"),
    ],
)
def test_what_is_no_method_is_refused(name: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", *FLAGS, "--method", name]) == 2
    assert reason in capsys.readouterr().err


def test_a_name_in_a_file_loads_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run folder that names an unknown method is refused; the file is not looked for."""
    assert main(["distill", *FLAGS, "--method", "dm", "--iterations", "1", "--batch", "8", "--out", "run"]) == 0
    settings = json.loads(Path("run/config.json").read_text())
    settings["method"]["name"] = "mine.py:Towards"
    Path("run/config.json").write_text(json.dumps(settings))
    capsys.readouterr()
    assert main(["distill", "--resume", "--out", "run"]) != 0
    assert "mine.py:Towards" in capsys.readouterr().err
    assert "towards" not in METHODS.names()

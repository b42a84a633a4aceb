"""`datadistill completion`: scripts that a shell completes by."""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from datadistill.cli.completion import SHELLS
from datadistill.cli.main import COMMANDS, main, make_parser
from datadistill.experiments.strategy import AUTO
from datadistill.methods import METHODS


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def _as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_has_all_commands_and_flags(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    assert [name for name in COMMANDS if name not in text] == []
    for parser in make_parser()[1].values():
        shown = [action for action in parser.actions() if action.help != argparse.SUPPRESS]
        flags = [flag.removeprefix("--" if shell == "fish" else "") for a in shown for flag in a.option_strings]
        assert [flag for flag in flags if flag not in text] == []
    assert "--outer-rate-of-rates" not in text  # an older name, which is read and not shown
    program = shutil.which(shell)
    if program is not None:
        subprocess.run([program, "-n"], input=text, text=True, check=True)


def completed(words: list[str], text: str, folder: Path) -> list[str]:
    """What bash offers for the last of these words."""
    line = " ".join(f"'{word}'" for word in words)
    asks = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_datadistill; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(
        ["bash", "--norc"], input=f"{text}\n{asks}\n", cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_flags_names_and_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = script("bash", capsys)
    assert completed(["datadistill", "dis"], text, tmp_path) == ["distill"]
    assert completed(["datadistill", "compare", "--base"], text, tmp_path) == ["--baselines"]
    assert completed(["datadistill", "distill", "--method", ""], text, tmp_path) == [*METHODS.names(), AUTO]
    assert "models" in completed(["datadistill", "list", ""], text, tmp_path)
    (tmp_path / "ten.safetensors").touch()
    assert completed(["datadistill", "evaluate", "te"], text, tmp_path) == ["ten.safetensors"]


def test_the_library_is_loaded_for_this_alone() -> None:
    code = "import sys, datadistill.cli.main; print('shtab' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "cmd"]) == 2
    assert "bash" in capsys.readouterr().err

"""Imports only go down the list of packages in CONTRIBUTING.md, and the core never needs torchvision."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT

PACKAGE = ROOT / "datadistill"

# The ground floor first. Packages on one line do not know each other.
ORDER = """
utils
data
models
engine
distilled
training
pretraining
methods evaluation
baselines distillation
formats report
experiments
cli
"""
FLOORS = {room: floor for floor, line in enumerate(ORDER.split("\n")) for room in line.split()}
FILES = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name == "distilled.py"]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_go_down() -> None:
    assert {room_of(path) for path in FILES} == set(FLOORS), "every package has its floor"
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for path in FILES
        for module in imported(path)
        if module.startswith("datadistill.")
        and module.split(".")[1] != room_of(path)
        and FLOORS[module.split(".")[1]] >= FLOORS[room_of(path)]
    ]
    assert not wrong


def test_core_needs_no_torchvision() -> None:
    """Nothing imports it by a statement; `torchvision:NAME` does by name, when that is asked for."""
    assert not [f for f in FILES for module in imported(f) if module.partition(".")[0] in ("torchvision", "timm")]


def test_importing_the_package_imports_no_extra() -> None:
    code = (
        "import sys, datadistill.cli.main; print([n for n in ('torchvision', 'timm', 'datasets') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

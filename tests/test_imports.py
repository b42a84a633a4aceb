"""Imports only point upwards in the list of CONTRIBUTING.md, and the core never needs torchvision."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "datadistill"

# Lowest first: a module may import from its own entry and from those before it.
ORDER = [
    "before_torch",
    "errors",
    "registry",
    "runtime",
    "files",
    "progress",
    "signals",
    "augment",
    "data",
    "models",
    "inner",
    "training",
    "matching",
    "distilled",
    "condensation",
    "pools",
    "trajectories",
    "weights",
    "methods",
    "checking",
    "evaluation",
    "audit",
    "experts",
    "recording",
    "baselines",
    "formats",
    "settings",
    "runs",
    "descent",
    "moments",
    "length",
    "looks",
    "outer",
    "report",
    "recipes",
    "jobs",
    "verdict",
    "experiment",
    "reproduce",
    "cli",
]


def entry(module: str) -> str:
    return module.split(".")[1]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("datadistill."):
            found.add(node.module)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("datadistill.")}
    return found


FILES = [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] not in ("__init__.py", "__main__.py")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_upwards(path: Path) -> None:
    mine = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert mine in ORDER, f"{mine} has no place in the order"
    for module in imported(path):
        assert ORDER.index(entry(module)) <= ORDER.index(mine), f"{path} imports {module} from below"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_core_needs_no_torchvision(path: Path) -> None:
    """Nothing imports it by a statement; `torchvision:NAME` does by name, when that is asked for."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(name.partition(".")[0] in ("torchvision", "timm") for name in names)


def test_importing_the_package_imports_no_extra() -> None:
    code = (
        "import sys, datadistill.cli.main; print([n for n in ('torchvision', 'timm', 'datasets') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

"""Imports only point upwards in the list of CONTRIBUTING.md, and the core never needs torchvision."""

import ast
import subprocess
import sys
from pathlib import Path

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


def test_imports_point_upwards() -> None:
    mine = {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert set(mine.values()) == set(ORDER), "every module has a place in the order, and the order no other names"
    from_below = [
        f"{path.relative_to(PACKAGE)} imports {module} from below"
        for path in FILES
        for module in imported(path)
        if ORDER.index(entry(module)) > ORDER.index(mine[path])
    ]
    assert not from_below


def test_core_needs_no_torchvision() -> None:
    """Nothing imports it by a statement; `torchvision:NAME` does by name, when that is asked for."""
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{path} imports {n}" for n in names if n.partition(".")[0] in ("torchvision", "timm")]
    assert not found


def test_importing_the_package_imports_no_extra() -> None:
    code = (
        "import sys, datadistill.cli.main; print([n for n in ('torchvision', 'timm', 'datasets') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

"""Functions have few parameters."""

import ast

from conftest import ROOT

MOST = 8
EXCEPTIONS = {"datadistill/data/own.py:from_arrays", "datadistill/engine/overrides.py:_attention"}
"""Three pairs of arrays, and the parameters of PyTorch's own attention."""


def parameters(function: ast.FunctionDef) -> int:
    """How many a caller sees: `self` is none of them, and `**options`, which dataclasses list, is one."""
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")]) + bool(given.vararg) + bool(given.kwarg)


def test_functions_have_few_parameters() -> None:
    many = {
        f"{path.relative_to(ROOT).as_posix()}:{node.name}"
        for path in (ROOT / "datadistill").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and parameters(node) > MOST
    }
    assert many == EXCEPTIONS

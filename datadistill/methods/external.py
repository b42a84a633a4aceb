"""Methods of a user's own: `file.py:Class` or `package.module:Class`, registered for as long as the process lives.

It is code, and loaded only where the user names it on the command line or registers it in Python; a name that was read
from a file never loads anything.
"""

from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from datadistill.methods import METHODS, Method, MethodInfo, Synthesis, anonymous
from datadistill.models.external import load_factory
from datadistill.utils.errors import RequestError


def register_code(name: str) -> MethodInfo:
    """Load a method and register it.

    Args:
        name: where it lies, such as `net.py:Mine`: a `MethodInfo`, or a frozen dataclass that is a `Method` or a
            `Synthesis` and has a default for every hyper-parameter.

    Raises:
        RequestError: there is no such thing, or its name is taken.
    """
    source = name.rpartition(":")[0]
    if source.endswith(".py") and not Path(source).is_file():
        raise RequestError(f"there is no file {source} to take the method from: write --method PATH.py:CLASS")
    record = replace(_record(load_factory(name), name), code=name)
    if any(known.make is record.make and known.name == record.name for known in METHODS):
        return METHODS.get(record.name)
    METHODS.register(record)
    return record


def _record(given: Any, name: str) -> MethodInfo:
    if isinstance(given, MethodInfo):
        return given
    if not (isinstance(given, type) and is_dataclass(given) and given.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise RequestError(f"{name} is no method: it must be a MethodInfo or a frozen dataclass")
    try:
        method = given()
    except TypeError as error:
        raise RequestError(f"{name} has hyper-parameters without a default: give each one") from error
    if not isinstance(method, Method | Synthesis):
        wanted = [part for part in ("name", "resolve", "init", "workload", "step") if not hasattr(method, part)]
        raise RequestError(f"{name} is no method: it has no {wanted[0]}; a Synthesis has pieces and piece instead")
    return anonymous(method)

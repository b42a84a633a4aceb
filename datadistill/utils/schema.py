"""Dataclasses from JSON, checked against their type hints."""

import json
import math
import reprlib
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from datadistill.utils.errors import DamagedFileError, plain, require
from datadistill.utils.fields import hints_of

T = TypeVar("T")

_NOUNS = {str: "text", bool: "true or false", int: "a whole number", float: "a number", NoneType: "null"}
_MOST_CHARACTERS = 400
"""Of what a dataclass itself says of values, which may come from a stranger."""


def from_json(
    kind: type[T], document: Any, error: type[Exception] = DamagedFileError, optional: Collection[str] | None = None
) -> T:
    """A dataclass from a JSON object.

    Hints may be of texts, numbers, truth values, lists, tuples, dictionaries, literals, unions, dataclasses and `Any`.
    Numbers must be finite; where a float is asked for a whole number stays one, and is written again as it was read.

    Args:
        kind: the dataclass.
        document: what JSON gave.
        error: what is raised, with one sentence.
        optional: which fields may be missing; without it, and in dataclasses within this one, those with defaults.

    Raises:
        error: a field is missing, unknown, of the wrong type, or refused by the dataclass itself.
    """
    if not isinstance(document, dict):
        raise error("it is not a JSON object")
    entries = [entry for entry in fields(kind) if entry.init]  # type: ignore[arg-type]
    unknown = document.keys() - {entry.name for entry in entries}
    if unknown:
        raise error(f"{reprlib.repr(min(unknown))} is unknown")
    values = as_hinted(kind, document, error)
    for entry in entries:
        is_required = entry.default is entry.default_factory is MISSING
        if entry.name not in document and (is_required if optional is None else entry.name not in optional):
            raise error(f"'{entry.name}' is missing")
    try:
        return kind(**values)
    except (TypeError, ValueError) as refusal:
        raise error(plain(str(refusal))[:_MOST_CHARACTERS]) from refusal


def as_hinted(
    kind: type[Any], document: Mapping[str, Any], error: type[Exception] = DamagedFileError
) -> dict[str, Any]:
    """Values for those fields of a dataclass that a JSON object has, as their hints want them.

    Raises:
        error: one is of the wrong type.
    """
    values: dict[str, Any] = {}
    for name, hint in hints_of(kind).items():
        if name in document:
            try:
                values[name] = _value(hint, document[name], error)
            except _MisfitError:
                raise error(f"'{name}' is {reprlib.repr(document[name])}, but must be {_words(hint)}") from None
    return values


def parse_json(text: str) -> Any:
    """What JSON says; strictly, because Python's reader takes more than there is.

    Raises:
        ValueError: it is no JSON, has a number that is none or beyond all floats, or is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no finite number")
    return value


def _whole(text: str) -> int:
    if abs(value := int(text)) > sys.float_info.max:
        raise ValueError("a number is beyond all floats")
    return value


def to_json(document: Any) -> Any:
    """Document as JSON gives it back, to compare with one that was read: tuples are lists, keys are texts."""
    return json.loads(json.dumps(document, allow_nan=False))


def of_format(document: Any, *numbers: int) -> dict[str, Any]:
    """A JSON object without its `format`.

    Raises:
        DamagedFileError: it is something else, or has another format than these.
    """
    require(isinstance(document, dict), "it is not a JSON object")
    given = document.get("format")
    require(given in numbers, f"it has format {reprlib.repr(given)}, not {' or '.join(map(str, numbers))}")
    return {name: value for name, value in document.items() if name != "format"}


def read_header(metadata: dict[str, str], key: str, *numbers: int) -> dict[str, Any]:
    """The JSON object in the metadata of a safetensors file, without its `format`.

    Raises:
        DamagedFileError: it is not there, no JSON object, or of another format than these.
    """
    require(key in metadata, f"the metadata key '{key}' is missing")
    try:
        document = parse_json(metadata[key])
    except ValueError as error:
        raise DamagedFileError("its metadata is not JSON") from error
    return of_format(document, *numbers)


class _MisfitError(Exception):
    """A value is not of the type of its hint."""


def _value(hint: Any, value: Any, error: type[Exception]) -> Any:
    """A value as its hint wants it."""
    origin, options = get_origin(hint), get_args(hint)
    if hint is Any or (hint in _NOUNS and _is_scalar(hint, value)):
        return value
    if origin in (Union, UnionType):
        for option in options:
            with suppress(_MisfitError):
                return _value(option, value, error)
    if origin is Literal and any(type(value) is type(option) and value == option for option in options):
        return value
    if origin in (list, tuple, Sequence) and isinstance(value, list | tuple):
        kinds = options if origin is tuple and options[-1] is not Ellipsis else options[:1] * len(value)
        if len(kinds) == len(value):
            values = [_value(one, item, error) for one, item in zip(kinds, value, strict=True)]
            return tuple(values) if origin is tuple else values
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {key: _value(options[1], item, error) for key, item in value.items()}
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return from_json(hint, value, error)
    raise _MisfitError


def _is_scalar(kind: type, value: Any) -> bool:
    if kind in (int, float):
        numbers = isinstance(value, int) or (kind is float and isinstance(value, float))
        return numbers and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, kind)


def _words(hint: Any) -> str:
    """Type hint in words, for error messages."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_words, options)))
    if origin is Literal:
        return " or ".join(map(str, options))
    if origin in (list, tuple, Sequence):
        length = f" of {len(options)}" if origin is tuple and options[-1] is not Ellipsis else ""
        return f"a list{length}, each {_words(options[0])}"
    return _NOUNS.get(hint, "an object")


def number_or_none(value: Any) -> float | None:
    """A finite number, or None for all else."""
    is_one = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_one else None

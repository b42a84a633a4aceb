"""Parsing: errors in one sentence, names without regard to case, flags made from dataclasses."""

import argparse
import inspect
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from datadistill.utils.errors import RequestError, suggestion, unknown_name


class Parser(argparse.ArgumentParser):
    """A parser that raises RequestError instead of printing its usage and leaving."""

    def __init__(self, **options: Any) -> None:
        options |= {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        raise RequestError(re.sub(r"^argument ([^:]+): ", r"\1: ", message))

    def flags(self) -> list[str]:
        """All flags."""
        return [flag for action in self._actions for flag in action.option_strings]

    def refuse(self, unknown: Sequence[str]) -> None:
        """Raise for arguments that no one took, with the nearest flag suggested."""
        if not unknown:
            return
        flag = unknown[0].split("=")[0]
        if flag.startswith("-"):
            hint = suggestion(flag, self.flags()) or f"; {self.prog} --help lists them"
            raise RequestError(f"{self.prog} has no flag {flag}{hint}")
        raise RequestError(f"{self.prog} does not know what to do with '{flag}'")


def one_of(kind: str, names: Iterable[str]) -> Callable[[str], str]:
    """A parser for one of several names, in any case."""
    known = list(names)

    def parse(text: str) -> str:
        for name in known:
            if name.lower() == text.lower():
                return name
        # argparse replaces the text of any ValueError by its own.
        raise argparse.ArgumentTypeError(str(unknown_name(kind, text, known)))

    return parse


def positive_int(text: str) -> int:
    """A parser for a whole number of at least 1."""
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1 and less than a billion")
    return int(text)


def fraction(text: str) -> int | float:
    """A parser for a positive number, whole where it can be, such as `10` or `0.5`."""
    value = number(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number less than a billion")
    return int(value) if value == int(value) else value


def images_per_class(text: str) -> int | float | str:
    """A parser for `10`, `0.5`, `5,10,20` or `proportional:100`; the last two stay text."""
    if re.fullmatch(r"proportional:\d{1,9}|\d{1,9}(,\d{1,9})+", text):
        return text
    return fraction(text)


def number(text: str) -> float:
    """A parser for a number."""
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from error


def documented(cls: type[Any]) -> dict[str, str]:
    """What a dataclass's docstring says of its attributes."""
    text = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", text, re.MULTILINE)
    return {name: " ".join(line.split()) for name, line in entries}


def add_fields(
    parser: argparse._ActionsContainer,
    cls: type[Any],
    bases: Mapping[str, Mapping[str, Any]],
    prefix: str = "",
    skip: Collection[str] = (),
) -> None:
    """Add a flag for every field of a dataclass, explained by its docstring; no flag has a default.

    Args:
        parser: takes the flags.
        cls: a dataclass with an `Attributes:` section.
        bases: what is taken without a flag, by the name of the case; where it is silent, the dataclass says.
        prefix: put before each flag's name.
        skip: fields that have a flag already.

    A field's metadata may hold another name of its `flag`, or None where there is none.
    """
    hints, lines = get_type_hints(cls), documented(cls)
    for entry in fields(cls):
        flag = _flag(entry)
        if entry.name in skip or flag is None:
            continue
        hint = hints[entry.name]
        if get_origin(hint) is Union:  # a number, or a word that is for no flag
            hint = get_args(hint)[0]
        options: dict[str, Any] = {"dest": prefix + flag, "default": None}
        if get_origin(hint) is Literal:
            options |= {"type": one_of(entry.name, get_args(hint)), "metavar": "|".join(get_args(hint))}
        elif get_origin(hint) is tuple:
            options |= {"type": number, "nargs": len(get_args(hint)), "metavar": "X"}
        elif hint is str:
            options |= {"metavar": "NAME"}
        else:
            options |= {
                "type": positive_int if hint is int else number,
                "metavar": "N" if hint is int else "X",
            }
        if hint is int and isinstance(entry.default, int) and entry.default <= 0:
            options["type"] = int
        line = lines.get(entry.name, entry.name).rstrip(".")
        options["help"] = f"{line} (default: {in_cases(bases, entry)})".replace("%", "%%")
        parser.add_argument("--" + (prefix + flag).replace("_", "-"), **options)


def _flag(entry: Field[Any]) -> str | None:
    flag: str | None = entry.metadata.get("flag", entry.name)
    return flag


def in_cases(bases: Mapping[str, Mapping[str, Any]], entry: Field[Any]) -> str:
    """What a field is without a flag: `256`, or `1024 with fixed-init, 256 with random-init`."""
    by_case = {case: base.get(entry.name, entry.default) for case, base in bases.items()}
    texts = {
        case: " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
        for case, value in by_case.items()
    }
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    together: dict[str, list[str]] = {}
    for case, text in texts.items():
        together.setdefault(text, []).append(case)
    return ", ".join(f"{text} with {' and '.join(cases)}" for text, cases in together.items())


def given_fields(arguments: argparse.Namespace, cls: type[Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a dataclass that were given as flags."""
    flags = {entry.name: flag for entry in fields(cls) if (flag := _flag(entry))}
    found = {name: getattr(arguments, prefix + flag) for name, flag in flags.items()}
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in found.items() if value is not None
    }


def command_line(*arguments: str) -> str:
    """A command for people to copy: the program as it can be found from here."""
    program = "datadistill"
    started = sys.argv[0]
    if shutil.which(program) is None and started.endswith(program):
        program = started
    return shlex.join([program, *arguments])

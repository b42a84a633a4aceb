"""Parsing: errors in one sentence, names without regard to case, flags made from dataclasses."""

import argparse
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NoReturn, get_args, get_origin

from datadistill.utils.errors import RequestError, suggestion, unknown_name
from datadistill.utils.fields import Option, as_values, options_in


class Parser(argparse.ArgumentParser):
    """A parser that raises RequestError instead of printing its usage and leaving."""

    def __init__(self, **options: Any) -> None:
        options |= {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        raise RequestError(re.sub(r"^argument ([^:]+): ", r"\1: ", message))

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file)  # argparse's own says nothing where it cannot be written

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        if sys.stdout is not None:
            sys.stdout.flush()  # here it is known what to do where nobody reads
        super().exit(status, message)

    def actions(self) -> list[argparse.Action]:
        """All flags and words, as argparse knows them."""
        return self._actions

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
    """A parser for one of several names, in any case, which are its attribute `names`."""
    known = list(names)

    def parse(text: str) -> str:
        for name in known:
            if name.lower() == text.lower():
                return name
        # argparse replaces the text of any ValueError by its own.
        raise argparse.ArgumentTypeError(str(unknown_name(kind, text, known)))

    parse.names = known  # type: ignore[attr-defined]
    return parse


def positive_int(text: str) -> int:
    """A parser for a whole number of at least 1."""
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1 and less than a billion")
    return int(text)


def number(text: str) -> float:
    """A parser for a number."""
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from error


def asked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser whose refusal argparse prints as it is."""

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except RequestError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


def add_fields(
    parser: argparse._ActionsContainer,
    cls: type[Any],
    bases: Mapping[str, Mapping[str, Any]],
    prefix: str = "",
    skip: Collection[str] = (),
) -> None:
    """Add a flag for every option of a dataclass, explained by its docstring; no flag has a default.

    Args:
        parser: takes the flags.
        cls: a dataclass with an `Attributes:` section.
        bases: what is taken without a flag, by the name of the case; where it is silent, the dataclass says.
        prefix: put before each flag's name.
        skip: options that have a flag already, or none.
    """
    for option in options_in(cls):
        if option.name not in skip and option.word is not None:
            add_option(parser, option, option.flag.otherwise or in_cases(bases, option), prefix)


def add_option(parser: argparse._ActionsContainer, option: Option, otherwise: str, prefix: str = "") -> None:
    """Add an option's flag; `otherwise` says in words what is taken without it."""
    choices, names = option.flag.choices, option.names
    line = option.line.rstrip(".")
    line += f": {', '.join(choices.names())}" if choices else ""
    line += f" (default: {otherwise})" if otherwise else ""
    kind: dict[str, Any] = {"metavar": option.flag.metavar or "|".join(names) or _METAVARS.get(option.kinds[0], "NAME")}
    if bool in option.kinds:
        kind = {"action": "store_true"}
    elif choices or names:
        kind |= {"type": one_of(*(choices.kind, choices.names()) if choices else (option.name, names))}
    elif option.flag.parse:
        kind |= {"type": asked(option.flag.parse)}
    elif get_origin(option.kinds[0]) is tuple:
        kind |= {"type": number, "nargs": len(get_args(option.kinds[0])), "metavar": option.flag.metavar or "X"}
    elif str not in option.kinds:
        kind |= {"type": number if float in option.kinds else _whole_number(option)}
    name = prefix + (option.word or option.name)
    parser.add_argument("--" + name.replace("_", "-"), dest=name, default=None, help=line.replace("%", "%%"), **kind)
    if option.flag.was:
        old = prefix + option.flag.was
        parser.add_argument("--" + old.replace("_", "-"), dest=name, default=None, help=argparse.SUPPRESS, **kind)


_METAVARS = {int: "N", float: "X"}


def _whole_number(option: Option) -> Callable[[str], int]:
    """A parser for a whole number; one that is not positive may be given where the default is none."""
    return positive_int if option.default is None or option.default > 0 else int


def in_cases(bases: Mapping[str, Mapping[str, Any]], option: Option) -> str:
    """What an option is without a flag: `256`, or `0.1 with dm, 1.0 with the others`; empty for nothing."""
    by_case = {case: base.get(option.name, option.default) for case, base in bases.items()}
    texts = {
        case: " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
        for case, value in by_case.items()
        if value is not None
    }
    if len(set(texts.values())) == 1 and texts.keys() == by_case.keys():
        return next(iter(texts.values()))
    together: dict[str, list[str]] = {}
    for case, text in texts.items():
        together.setdefault(text, []).append(case)
    if together and texts.keys() == by_case.keys():
        usual = max(together, key=lambda text: len(together[text]))
        cases = together.pop(usual)
        together[usual] = ["the others"] if len(cases) > 2 else cases
    return ", ".join(f"{text} with {' and '.join(cases)}" for text, cases in together.items())


def given_fields(arguments: argparse.Namespace, cls: type[Any], prefix: str = "") -> dict[str, Any]:
    """The options of a dataclass that were given as flags."""
    words = {option.name: prefix + option.word for option in options_in(cls) if option.word is not None}
    given = {name: getattr(arguments, word, None) for name, word in words.items()}
    return as_values(cls, {name: value for name, value in given.items() if value is not None})


def command_line(*arguments: str) -> str:
    """A command for people to copy: the program as it can be found from here."""
    program = "datadistill"
    started = sys.argv[0]
    if shutil.which(program) is None and started.endswith(program):
        program = started
    return shlex.join([program, *arguments])

"""Fields of dataclasses of options: what they mean, and how they are written on a command line and in JSON."""

import inspect
import re
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from datadistill.utils.errors import RequestError, suggestion
from datadistill.utils.registry import Registry

Made = TypeVar("Made", bound=Callable[..., Any])

_HOW, _WORD = "how", "flag"
_MOST = 3e38
"""The largest number of single precision, nearly."""


@dataclass(frozen=True)
class Flag:
    """How an option is written on a command line, where its type does not say it.

    Attributes:
        parse: makes the value of a text; raises RequestError.
        metavar: what stands for the value in help texts.
        choices: the only names that there are.
        otherwise: what is taken without the option, in words; its default without such words.
        prefix: put before the names of a group's options.
        was: the option's name in older files and commands, which are still read.
    """

    parse: Callable[[str], Any] | None = None
    metavar: str = ""
    choices: Registry[Any] | None = None
    otherwise: str = ""
    prefix: str = ""
    was: str = ""

    @property
    def metadata(self) -> dict[str, Any]:
        """As `dataclasses.field` takes it."""
        return {_HOW: self}


@dataclass(frozen=True)
class Option:
    """A field of a dataclass of options.

    Attributes:
        name: of the field.
        hint: its type.
        default: its value where none is given; None where it is made afresh.
        line: what the docstring of its class says of it.
        flag: how it is written on a command line.
        word: what its flag is called; None where it has none.
    """

    name: str
    hint: Any
    default: Any
    line: str
    flag: Flag
    word: str | None

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types that it may have, without None."""
        return tuple(kind for kind in _alternatives(self.hint) if kind is not type(None))

    @property
    def names(self) -> tuple[str, ...]:
        """The names that its type allows; empty where it may be something else too."""
        first = self.kinds[0]
        return tuple(map(str, get_args(first))) if get_origin(first) is Literal else ()

    @property
    def group(self) -> type[Any] | None:
        """The dataclass of options that it holds, if it does."""
        (first, *others) = self.kinds
        return first if not others and isinstance(first, type) and is_dataclass(first) else None


hints_of: Callable[[Any], Mapping[str, Any]] = cache(get_type_hints)
"""The types of a dataclass's fields; every flag and every file of JSON asks for them."""


def options_in(cls: type[Any]) -> list[Option]:
    """The options that a dataclass has, in order; its docstring has a section `Attributes:` that explains each."""
    hints, lines = hints_of(cls), documented(cls)
    return [
        Option(
            name=entry.name,
            hint=hints[entry.name],
            default=None if entry.default is MISSING else entry.default,
            line=lines.get(entry.name, entry.name),
            flag=entry.metadata.get(_HOW, Flag()),
            word=entry.metadata.get(_WORD, entry.name),
        )
        for entry in fields(cls)
    ]


def documented(cls: type[Any]) -> dict[str, str]:
    """Descriptions of a dataclass's attributes, from its docstring and those of the classes that it extends."""
    texts = [inspect.cleandoc(one.__doc__ or "").partition("Attributes:\n")[2] for one in reversed(cls.__mro__)]
    entries = [entry for text in texts for entry in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", text, re.MULTILINE)]
    return {name: " ".join(line.split()) for name, line in entries}


def with_options(options: Iterable[Option]) -> Callable[[Made], Made]:
    """Decorator that shows a function's `**options` in its signature, and in its docstring before `Raises:`."""
    options = list(options)

    def decorated(function: Made) -> Made:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        more = [
            inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.hint)
            for one in options
        ]
        vars(function)["__signature__"] = signature.replace(parameters=[*own, *more])
        lines = "".join(f"    {one.name}: {one.line}\n" for one in options)
        text = inspect.cleandoc(function.__doc__ or "")  # from Python 3.13 on it comes without the code's indentation
        function.__doc__ = text.replace("\n\nRaises:", f"\n{lines}\nRaises:", 1)
        return function

    return decorated


def check_names(given: Iterable[str], options: Iterable[Option], what: str) -> None:
    """Refuse keywords that are no options of `what`, which is called so in the sentence.

    Raises:
        TypeError: naming the first, with the nearest option.
    """
    known = [option.name for option in options]
    for name in given:
        if name not in known:
            hint = suggestion(name, known) or f": there are {', '.join(known)}"
            raise TypeError(f"{what} has no option '{name}'{hint}")


def check_numbers(
    options: Any, least: Mapping[str, int] | None = None, positive: Collection[str] = (), no_less: Collection[str] = ()
) -> None:
    """Refuse options out of range.

    Args:
        options: a dataclass that has them.
        least: the smallest value of each whole number, by name.
        positive: names of numbers that are above 0 and finite.
        no_less: names of numbers that are 0 or more and finite.

    Raises:
        RequestError: naming the first.
    """
    for name, value in (least or {}).items():
        if getattr(options, name) < value:
            raise RequestError(f"{name} is {getattr(options, name)}, but must be at least {value}")
    for name in (*positive, *no_less):
        value, may_be_zero = getattr(options, name), name in no_less
        if not (0 < value < _MOST or (may_be_zero and value == 0)):
            kind = "finite and not negative" if may_be_zero else "positive and finite"
            raise RequestError(f"{name} is {value}, but must be {kind}")


def by_name(cls: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options by their present names, from a file that may have older ones (`Flag.was`)."""
    names = {was: entry.name for entry in fields(cls) if (was := entry.metadata.get(_HOW, Flag()).was)}
    return {names.get(name, name): value for name, value in given.items()}


def as_values(cls: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values for a dataclass from what TOML or JSON holds, which knows no tuples."""
    hints, given = hints_of(cls), by_name(cls, given)

    def is_tuple(name: str) -> bool:
        return any(get_origin(kind) is tuple for kind in _alternatives(hints.get(name)))

    return {
        name: tuple(value) if isinstance(value, list) and is_tuple(name) else value for name, value in given.items()
    }


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)

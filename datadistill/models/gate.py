"""The gate: what a file names runs nothing, fetches nothing and reads nothing else, unless the user names it too.

The name of a network can be code (`net.py:f`, `package.module:f`) or a library's (`timm:NAME`); that of a dataset can
be fetched (`hf:NAME`, official files) or a path, as that of a pool is. Files come from anybody. So every name that was
read from one comes through here before it is used: `passed` takes one, `refuse` those of a whole document.
"""

import itertools
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datadistill.data import is_external, is_here, is_named
from datadistill.data.readers.huggingface import PREFIX
from datadistill.models.external import is_code
from datadistill.utils.errors import RequestError

_PATHS = ("pool", "trajectories")
_KINDS = {"model": "network", "matched_on": "network"}
_NAME_NOTHING = ("attack", "device", "ipc")
"""Options that are compared with names of classes, or parsed, and may have colons: `cuda:1`, `proportional:100`."""

_LOOKS_LIKE_A_PATH = re.compile(r"[/\\~]|^\.|\.[^\W\d]")
_MOST_CHARACTERS, _MOST_NAMES = 400, 6


@dataclass(frozen=True)
class Named:
    """A name from a file.

    Attributes:
        kind: what it names: network, dataset, pool, trajectories, or an option that may be any of them.
        name: as the file has it.
        flag: by which the user says the same.
    """

    kind: str
    name: str
    flag: str

    def reach(self, data_root: str | Path | None = None, inside: Path | None = None) -> str:
        """What using it does that only the user may ask for, in words; empty where it does nothing of the kind.

        Args:
            data_root: where official dataset files lie.
            inside: the run's folder, whose own files may be read.
        """
        if self.kind in _PATHS:
            return "" if _lies_in(self.name, inside) else "which is a path"
        if self.kind == "dataset":
            return _reach_of_dataset(self.name, data_root, inside)
        if is_code(self.name):
            return "which is code"
        if ":" in self.name:
            return "which another library makes"
        return "which is a path" if _LOOKS_LIKE_A_PATH.search(self.name) and not _lies_in(self.name, inside) else ""

    def words(self) -> list[str]:
        """The flag and the name, as words of a command."""
        return [self.flag, self.name]


def _reach_of_dataset(name: str, data_root: str | Path | None, inside: Path | None) -> str:
    if name.lower().startswith(PREFIX):
        return "which would be fetched"
    if is_named(name):
        return "" if is_here(name, data_root) else "which is not on this machine and would be fetched"
    return "which is a path" if is_external(name) and not _lies_in(name, inside) else ""


def _lies_in(name: str, folder: Path | None) -> bool:
    try:
        return folder is not None and Path(name).expanduser().resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # no path at all
        return False


def _is_missing(dataset: str) -> bool:
    """Whether a dataset is a path at which there is nothing."""
    if dataset.lower().startswith(PREFIX) or is_named(dataset):
        return False
    try:
        return not Path(dataset).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, with a zero in it, or of a user that there is not
        return True


def passed(kind: str, given: Any, recorded: str, *, file: str = "the distilled data", **where: Any) -> Any:
    """What the user gave, else what a file names.

    Args:
        kind: what it is: `network` or `dataset`.
        given: by the user; None for nothing.
        recorded: in the file.
        file: what an error calls it.
        **where: as for `Named.reach`.

    Raises:
        RequestError: the file names what nobody but the user may ask for, or what is not here.
    """
    if given is not None:
        return given
    if kind == "dataset" and _is_missing(recorded):
        what = "file" if recorded.lower().endswith((".npz", ".parquet")) else "folder"
        raise RequestError(
            f"it was made from the {what} {recorded:.{_MOST_CHARACTERS}}, which is not here: give --dataset"
        )
    refuse(file, [Named(kind, recorded, "--dataset" if kind == "dataset" else "--model")], **where)
    return recorded


def refuse(file: str, names: Iterable[Named], advice: str = "", **where: Any) -> None:
    """Refuse names of a file that reach beyond it.

    Args:
        file: what an error calls it.
        names: those that the user has not said.
        advice: what to do, where there are no flags to give.
        **where: as for `Named.reach`.

    Raises:
        RequestError: naming the first of them, and the flags that allow them.
    """
    found = {one: why for one in names if (why := one.reach(**where))}
    if not found:
        return
    found = dict(itertools.islice(found.items(), _MOST_NAMES))
    what = ", and ".join(f"the {one.kind} {one.name:.{_MOST_CHARACTERS}}, {why}" for one, why in found.items())
    flags = shlex.join(word[:_MOST_CHARACTERS] for one in found for word in one.words())
    advice = advice or f"say {flags} to use {'it' if len(found) == 1 else 'them'}"
    raise RequestError(f"{file} names {what}: {advice}")


def names_in(options: Mapping[str, Any], prefix: str = "") -> Iterator[Named]:
    """Every text among the options of a document, whether or not it is known to name anything.

    Args:
        options: values by name, as JSON and TOML hold them.
        prefix: of their flags.
    """
    for option, value in options.items():
        if option in _NAME_NOTHING:
            continue
        kind, flag = _KINDS.get(option, option), f"--{prefix}{option}".replace("_", "-")
        yield from (Named(kind, text, flag) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(one)

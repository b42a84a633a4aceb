"""Atomic files: the old one or the new one, never half of one."""

import hashlib
import json
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from datadistill.utils.errors import (
    DamagedFileError,
    DatadistillError,
    RequestError,
    explain_os_error,
    reason_of,
    require,
)
from datadistill.utils.interrupts import held
from datadistill.utils.schema import parse_json

if sys.platform != "win32":
    import fcntl
    import grp
    import pwd

Found = TypeVar("Found")


def check_free(path: Path) -> None:
    """Refuse a place for a file that holds something: nothing of a user's is ever overwritten.

    Raises:
        RequestError: there is something, be it a link that leads nowhere; or the path has no name.
    """
    if os.path.lexists(path) or not path.name or path.name == "..":
        raise RequestError(f"there is something at {path} already: give another place with --out")


def is_file(path: Path) -> bool:
    """Whether there is a file at a path.

    Raises:
        DatadistillError: that cannot be found out, such as of a name that is too long.
    """
    try:
        return path.is_file()
    except OSError as error:
        raise explain_os_error(error, f"read {path}") from error


def refuse_links(folder: Path, itself: bool = False) -> None:
    """Refuse a folder that holds a link: what is written or deleted through one is somebody else's.

    Args:
        folder: there or not.
        itself: whether it must not be one either.

    Raises:
        RequestError: naming the link.
        DatadistillError: it cannot be looked through.
    """

    def refuse(error: OSError) -> NoReturn:
        raise explain_os_error(error, f"look through {folder}") from error

    paths = [str(folder)] if itself else []
    if folder.is_dir() and not (itself and folder.is_symlink()):
        found = os.walk(folder, onerror=refuse)
        paths += [os.path.join(place, name) for place, folders, files in found for name in (*folders, *files)]
    for path in filter(os.path.islink, paths):
        raise RequestError(f"{path} is a link, and nothing is written or deleted through one: remove it")


def who_else(path: Path) -> str:
    """How somebody else could put something else at a path, in words; empty where nobody can.

    Every folder on the way is looked at too, as it is named and as its links lead: whoever may write to one of them may
    replace what is below. What is not there yet is no trouble.
    """
    if not hasattr(os, "getuid"):
        return ""
    path = path.absolute()
    for end in (path, path.resolve()):
        for part in (*reversed(end.parents), end):
            try:
                found = part.lstat()
            except OSError:  # not there, or out of reach, as is all below it
                break
            if found.st_uid not in (os.getuid(), 0):
                return f"{part} belongs to somebody else"
            # In a folder like /tmp only the owner of something may replace it.
            is_shared = part != end and found.st_mode & stat.S_ISVTX
            others = stat.S_IWOTH if _is_mine_alone(found.st_gid) else stat.S_IWOTH | stat.S_IWGRP
            if not stat.S_ISLNK(found.st_mode) and found.st_mode & others and not is_shared:
                return f"others may write to {part}"
    return ""


def _is_mine_alone(group: int) -> bool:
    """Whether a group is the user's own, as many systems give everybody one, and lets them write to its files."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
        known = grp.getgrgid(group)
    except KeyError:
        return False
    return known.gr_name == name and set(known.gr_mem) <= {name}


def gone(folder: Path) -> DatadistillError:
    """The error for a folder that was taken away from under whoever writes to it."""
    return DatadistillError(f"{folder} was removed while it was written to: what it held is lost, so start it again")


@contextmanager
def locked(folder: Path) -> Iterator[Callable[[], None]]:
    """Hold a folder, made if need be, so that no second process writes to it; freed when the process ends.

    Gives a function that raises DatadistillError once the folder is not there, or is another one.

    Raises:
        RequestError: another process holds it.
        DatadistillError: it cannot be written.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise explain_os_error(error, f"write to {folder}") from error

    def check() -> None:
        if not (path.exists() and os.path.samestat(path.stat(), os.fstat(handle))):
            raise gone(folder)

    try:
        if not _lock(handle):
            raise RequestError(f"another process is running in {folder}: wait for it, or give another --out")
        for left in folder.rglob(".*.part"):
            left.unlink(missing_ok=True)
        yield check
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Whether the file could be locked, or its file system knows no locks."""
    if sys.platform != "win32":
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
    return True


def check_file(path: Path) -> None:
    """Refuse what is there but no file: a pipe would be waited for without end, and a device has no end.

    Raises:
        DamagedFileError: it is something else.
    """
    require(path.is_file() or not path.exists(), f"{path} is no file")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old content or the new one.

    Raises:
        DatadistillError: the system refused, for instance because the disk is full; the old file is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise explain_os_error(error, f"write {path}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, document: Any) -> None:
    """Write JSON atomically, for people too: indented, one final newline."""
    write_atomically(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        DamagedFileError: it is not JSON.
        DatadistillError: it cannot be read.
    """
    try:
        check_file(path)
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise explain_os_error(error, "read a file") from error
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged: it is not JSON") from error


def tensors_file(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """The content of a safetensors file; tensors are copied to the CPU."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(ready, metadata)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically."""
    write_atomically(path, tensors_file(tensors, metadata))


def look_into(path: Path, look: Callable[[Any], Found]) -> Found:
    """What a function finds in a safetensors file. Nothing in it is ever executed.

    Args:
        path: of the file.
        look: is given the open file, as `safetensors.safe_open` does, whose tensors go with it.

    Raises:
        DamagedFileError: truncated, altered beyond reading, or no safetensors file.
        DatadistillError: it cannot be read at all.
    """
    try:
        check_file(path)
        # Claimed sizes are checked against the file's before memory is taken.
        with held(), _plainly_named(path) as name, safe_open(name, framework="pt") as file:
            return look(file)
    except OSError as error:
        raise explain_os_error(error, f"read {path}") from error
    except DatadistillError:
        raise
    except (SafetensorError, ValueError, RuntimeError, LookupError, AttributeError, TypeError) as error:
        raise DamagedFileError(f"{path} is damaged or no safetensors file: {reason_of(error)}") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file's tensors, on the CPU, and its metadata; errors are those of `look_into`."""

    def look(file: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        # Cloned, so that nothing points into the file once somebody replaces it.
        return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118

    return look_into(path, look)


@contextmanager
def _plainly_named(path: Path) -> Iterator[Path]:
    """A path that safetensors can open: it knows none with bytes that are no UTF-8, as names of old folders have."""
    if str(path).isprintable() or not any("\udc80" <= letter <= "\udcff" for letter in str(path)):
        yield path
        return
    with TemporaryDirectory() as folder:
        link = Path(folder, "data.safetensors")
        link.symlink_to(path.absolute())
        yield link


def digest_of(tensors: dict[str, Tensor], text: str = "") -> str:
    """SHA-256 of some text and of tensors with their names, types and shapes, hexadecimal."""
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()

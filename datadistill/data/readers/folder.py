"""Image folders: `train/CLASS/*`, `val/CLASS/*`, `test/CLASS/*`, or `CLASS/*` alone."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from datadistill.data.labelled import Labelled
from datadistill.data.options import Options
from datadistill.data.readers.cache import decode_once
from datadistill.data.readers.image_files import Pictures, shown
from datadistill.data.splits import Splits, class_order, clean_classes
from datadistill.utils.errors import RequestError, explain_os_error
from datadistill.utils.progress import Bar

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
ROLES = {
    "train": ("train", "training"),
    "held_out": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What splits are called."""


@dataclass(frozen=True)
class _File:
    """An image file in a folder of one class.

    Attributes:
        role: the split.
        label: the class's name.
        path: where it is.
        name: relative to the whole folder.
        state: size and time of its last change.
    """

    role: str
    label: str
    path: Path
    name: str
    state: str

    @property
    def order(self) -> tuple[str, str]:
        """By file name, whatever the class."""
        return self.path.name, self.name


def read_folder(folder: Path, options: Options, say: Callable[[str], None], bar: Bar) -> Splits:
    """All images of a folder, in the order of their file names.

    Args:
        folder: with `train/`, or with one folder for each class.
        options: how images are read.
        say: is told of trouble with the cache.
        bar: shows progress.

    Raises:
        RequestError: the folder is laid out in another way.
        DamagedFileError: images cannot be read.
    """
    try:
        files, remarks = _listed(folder)
    except OSError as error:
        raise explain_os_error(error, f"read {folder}") from error
    names = sorted({file.label for file in files if file.role == "train"}, key=class_order)
    classes = clean_classes(names, str(folder))
    index = {name: number for number, name in enumerate(names)}
    for file in files:
        if file.label not in index:
            raise RequestError(f"{shown(file.name)} is of class '{shown(file.label)}', which has no images to train on")
    pictures = Pictures(
        names=tuple(file.name for file in files),
        read=lambda: [file.path for file in files],
        place=str(folder),
        state="\n".join(file.state for file in files),
    )
    decoded = decode_once(pictures, options, say, bar)
    kept = [files[number] for number in decoded.kept]
    if len(kept) < len(files):
        remarks.append(f"{len(files) - len(kept):,} images of {folder} cannot be read and are skipped")
    labels = torch.tensor([index[file.label] for file in kept])
    found = {}
    for role in ROLES:
        mine = torch.tensor([number for number, file in enumerate(kept) if file.role == role], dtype=torch.long)
        if any(file.role == role for file in files):
            found[role] = Labelled(decoded.pixels[mine], labels[mine])
    return Splits(found["train"], found.get("held_out"), found.get("test"), classes, tuple(remarks))


def _listed(folder: Path) -> tuple[list[_File], list[str]]:
    """The images of all splits, and remarks on what else there is."""
    files, others, outside = list[_File](), 0, 0
    root = folder.resolve()
    for role, split in _roles(folder).items():
        for place in _folders(split):
            before = len(files)
            for path in _walk(place):
                if path.suffix.lower() not in SUFFIXES:
                    others += 1
                    continue
                outside += _leads_out(path, root)
                files.append(_File(role, place.name, path, str(path.relative_to(folder)), _state(path)))
            if len(files) == before and role == "train":
                raise RequestError(f"{shown(str(place))} has no images: {', '.join(SUFFIXES)} are read")
    if not any(file.role == "train" for file in files):
        raise RequestError(
            f"{folder} has no images in folders of classes: it should hold CLASS/IMAGE or train/CLASS/IMAGE, with "
            f"images that end in {', '.join(SUFFIXES)}"
        )
    remarks = []
    if others:
        remarks.append(f"{others:,} other file{'s' if others > 1 else ''} in {folder} passed over")
    if outside:
        remarks.append(f"{outside:,} image{'s are links' if outside > 1 else ' is a link'} that lead out of {folder}")
    return sorted(files, key=lambda file: file.order), remarks


def _roles(folder: Path) -> dict[str, Path]:
    """Where each split is: in folders of their names if `train` holds folders, else all in one."""
    there = {place.name.lower(): place for place in _folders(folder)}
    found = {role: there[name] for role, names in ROLES.items() for name in reversed(names) if name in there}
    if "train" in found and _folders(found["train"]):
        return found
    return {"train": folder}


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not _is_hidden(path) and path.is_dir())


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, each once; links are followed, but never round and round."""
    seen = set()
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        here = os.stat(place)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if not _is_hidden(Path(name)))
        yield from (Path(place, name) for name in sorted(names) if not _is_hidden(Path(name)))


def _refuse(error: OSError) -> NoReturn:
    raise error


def _leads_out(path: Path, root: Path) -> bool:
    try:
        return not path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a link to itself; what reads it will say so
        return False


def _is_hidden(path: Path) -> bool:
    """Whether it is what people do not mean: hidden files, among them macOS' `._NAME`, and its archive folder."""
    return path.name.startswith(".") or path.name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _state(path: Path) -> str:
    try:
        there = path.stat()
    except OSError:
        return "gone"
    return f"{there.st_size} {there.st_mtime_ns}"

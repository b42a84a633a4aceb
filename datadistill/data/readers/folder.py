"""Image folders: `train/CLASS/*`, `val/CLASS/*`, `test/CLASS/*`, or `CLASS/*` alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from datadistill.data.labelled import Labelled
from datadistill.data.options import Options
from datadistill.data.readers.cache import decode_once
from datadistill.data.readers.image_files import Pictures, shown
from datadistill.data.readers.layout import ROLES, SUFFIXES, joined, layout_of, walk
from datadistill.data.splits import Splits, class_order, clean_classes
from datadistill.utils.errors import RequestError, explain_os_error
from datadistill.utils.progress import Bar


@dataclass(frozen=True)
class _File:
    """An image file in a folder of one class.

    Attributes:
        role: the split.
        label: the class's name.
        path: where it is.
        name: relative to the whole folder.
        state: changes when the file does.
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
    remarks += decoded.remarks
    labels = torch.tensor([index[file.label] for file in kept])
    found = {}
    for role in ROLES:
        mine = torch.tensor([number for number, file in enumerate(kept) if file.role == role], dtype=torch.long)
        if any(file.role == role for file in files):
            found[role] = Labelled(decoded.pixels[mine], labels[mine])
    return Splits(found["train"], found.get("held_out"), found.get("test"), classes, tuple(remarks), decoded.whites)


def _listed(folder: Path) -> tuple[list[_File], list[str]]:
    """The images of all splits, and remarks on what else there is."""
    layout, root = layout_of(folder), folder.resolve()
    files, others, outside, within = list[_File](), 0, 0, dict[str, int]()
    for place in layout.places:
        before = len(files)
        for path in walk(place.folder):
            if path.suffix.lower() not in SUFFIXES:
                others += 1
                continue
            outside += _leads_out(path, root)
            if path.parent != place.folder:
                within[path.parent.name] = within.get(path.parent.name, 0) + 1
            files.append(_File(place.role, place.label, path, str(path.relative_to(folder)), state_of(path)))
        if len(files) == before and place.role == "train":
            raise RequestError(f"{shown(str(place.folder))} has no images: {', '.join(SUFFIXES)} are read")
    if not any(file.role == "train" for file in files):
        raise RequestError(
            f"{folder} has no images in folders of classes: it should hold CLASS/IMAGE or train/CLASS/IMAGE, with "
            f"images that end in {', '.join(SUFFIXES)}"
        )
    remarks = layout.remarks
    if within:
        remarks.append(
            f"{sum(within.values()):,} images lie in folders within those of the classes ({joined(sorted(within))}) "
            "and are read like the others"
        )
    if others:
        remarks.append(f"{others:,} other file{'s' if others > 1 else ''} in {folder} passed over")
    if outside:
        remarks.append(f"{outside:,} image{'s are links' if outside > 1 else ' is a link'} that lead out of {folder}")
    return sorted(files, key=lambda file: file.order), remarks


def _leads_out(path: Path, root: Path) -> bool:
    try:
        return not path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a link to itself; what reads it will say so
        return False


def state_of(path: Path) -> str:
    """Fingerprint of a file's state: its time of change cannot be set, as that of modification can."""
    try:
        there = path.stat()
    except OSError:
        return "gone"
    return f"{there.st_size} {there.st_mtime_ns} {there.st_ctime_ns} {there.st_dev} {there.st_ino}"

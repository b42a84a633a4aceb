"""Layout of image folders, as people unpack them: classes and splits; what is guessed or left out is said."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from datadistill.data.readers.image_files import shown
from datadistill.utils.errors import RequestError, some_of

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm",
)  # fmt: skip
ROLES = {
    "train": ("train", "training"),
    "held_out": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What splits are called."""

_SPLITS = {"train": "training", "held_out": "validation", "test": "test"}
_HIDDEN = {
    "__macosx", "thumbs.db", "desktop.ini", "@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "$recycle.bin",
    "system volume information", "lost+found",
}  # fmt: skip
"""What systems put beside people's files; some of it looks like images."""

_DEEPEST = 4


@dataclass(frozen=True)
class Place:
    """A folder with the images of one class.

    Attributes:
        role: their split.
        label: their class.
        folder: where they lie, at any depth.
    """

    role: str
    label: str
    folder: Path


@dataclass
class Layout:
    """Layout of a folder.

    Attributes:
        places: where images lie.
        remarks: sentences on what was guessed, and on what is left out.
    """

    places: list[Place]
    remarks: list[str] = field(default_factory=list)


def layout_of(folder: Path) -> Layout:
    """The layout of a folder.

    Raises:
        RequestError: it holds splits, but no classes.
        OSError: it cannot be read.
    """
    top = folder
    for _ in range(_DEEPEST):
        inside = folders(top)
        if len(inside) != 1 or _role(inside[0].name) or _count_loose(top) or not folders(inside[0]):
            break
        top = inside[0]
    splits = _splits(top)
    layout = _by_split(top, splits) if splits else _class_first(top) or _by_class(top)
    if top != folder:
        layout.remarks.insert(0, f"what is read is {shown(str(top.relative_to(folder)))}, all that {folder} holds")
    return layout


def _by_split(top: Path, splits: dict[str, Path]) -> Layout:
    """`SPLIT/CLASS/IMAGE`."""
    guessed = [f"{place.name} for the {_SPLITS[role]} split" for role, place in splits.items() if not _role(place.name)]
    inner = {role: _unwrapped(place) for role, place in splits.items()}
    layout = Layout([Place(role, one.name, one) for role, place in inner.items() for one in folders(place)])
    if guessed:
        layout.remarks.append(f"taken by name and classes: {shown(' and '.join(guessed))}")
    loose = sum(map(_count_loose, {top, *splits.values(), *inner.values()}))
    layout.remarks += _loose(loose, top)
    unused = [place for place in folders(top) if place not in splits.values()]
    count = sum(path.suffix.lower() in SUFFIXES for place in unused for path in walk(place))
    if count:
        layout.remarks.append(f"{_images(count)} in {_some(unused)} passed over: beside {_some([*splits.values()])}")
    return layout


def _class_first(top: Path) -> Layout | None:
    """`CLASS/SPLIT/IMAGE`, if every folder holds a training split and nothing but splits."""
    places = []
    for one in folders(top):
        inside = {role: place for place in folders(one) if (role := _role(place.name))}
        if "train" not in inside or len(inside) < max(2, len(folders(one))) or _count_loose(one):
            return None
        places += [Place(role, one.name, place) for role, place in inside.items()]
    remark = "the folders within those of the classes are taken for splits, by their names"
    return Layout(places, [remark, *_loose(_count_loose(top), top)]) if places else None


def _by_class(top: Path) -> Layout:
    """`CLASS/IMAGE`, with a question where these do not look like classes."""
    places = folders(top)
    roles = [place for place in places if _role(place.name)]
    if len(roles) > 1 and len(roles) == len(places):
        raise RequestError(
            f"{_some(roles)} of {top} look like splits, but not each of them holds folders of classes, train among "
            "them: a folder should hold CLASS/IMAGE or train/CLASS/IMAGE"
        )
    layout = Layout([Place("train", place.name, place) for place in places], _loose(_count_loose(top), top))
    if len(roles) > 1:
        layout.remarks.append(f"{_some(roles)} are taken for classes of their own: are they splits?")
    inside = {
        place: {one.name for one in folders(place)} for place in places if folders(place) and not _count_loose(place)
    }
    known = {place.name for place in places}
    for place, names in inside.items():
        shared = names & known.union(*(others for other, others in inside.items() if other != place))
        if shared:
            layout.remarks.append(
                f"class {shown(place.name)} holds folders alone, which are called like others "
                f"({joined(sorted(shared))}): is it a split? those are train/CLASS/IMAGE and test/CLASS/IMAGE"
            )
    return layout


def _splits(top: Path) -> dict[str, Path]:
    """The folder of each split; none where there is no training split with classes in it.

    A folder that is called like a split is one. Another that has such a word in its name is one if it is alone in that,
    and holds folders of the same names as the training split.
    """
    there = folders(top)
    exact = _named_roles(there)
    wordy: dict[str, list[Path]] = {}
    for place in there:
        for role, names in ROLES.items():
            if set(names) & set(re.split(r"[^a-z]+", place.name.lower())) and folders(place):
                wordy.setdefault(role, []).append(place)
    likely = {role: places[0] for role, places in wordy.items() if len(places) == 1 and role not in exact}
    train = exact.get("train") or likely.get("train")
    if train is None or not folders(train):
        return {}
    classes = _names(train)
    likely = {role: place for role, place in likely.items() if place == train or _names(place) & classes}
    found = {role: place for role, place in {**likely, **exact}.items() if place in there}
    return found if "train" in exact or len(found) > 1 else {}


def _named_roles(places: list[Path]) -> dict[str, Path]:
    there = {place.name.lower(): place for place in places}
    return {role: there[name] for role, names in ROLES.items() for name in reversed(names) if name in there}


def _role(name: str) -> str | None:
    return next((role for role, names in ROLES.items() if name.lower() in names), None)


def _names(split: Path) -> set[str]:
    return {place.name for place in folders(_unwrapped(split))}


def _unwrapped(split: Path) -> Path:
    """A split's folder, or one of the same name that is all it holds, as archives unpack."""
    inside = folders(split)
    is_wrapped = len(inside) == 1 and inside[0].name.lower() == split.name.lower() and folders(inside[0])
    return inside[0] if is_wrapped else split


def _count_loose(folder: Path) -> int:
    return sum(path.suffix.lower() in SUFFIXES and path.is_file() for path in folder.iterdir() if not is_hidden(path))


def _loose(count: int, top: Path) -> list[str]:
    lie = "lies" if count == 1 else "lie"
    return [f"{_images(count)} of {top} {lie} in no class folder and are passed over"] if count else []


def _images(count: int) -> str:
    return f"{count:,} image{'s' if count > 1 else ''}"


def _some(places: list[Path]) -> str:
    return joined([place.name for place in places])


def joined(names: list[str]) -> str:
    """Some of many names, for a sentence."""
    return shown(some_of(names))


def folders(folder: Path) -> list[Path]:
    """The folders in a folder that people mean, sorted."""
    return sorted(path for path in folder.iterdir() if not is_hidden(path) and path.is_dir())


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, each once; links are followed, but never round and round."""
    seen = set()
    for place, inside, names in os.walk(folder, onerror=_refuse, followlinks=True):
        here = os.stat(place)
        if (here.st_dev, here.st_ino) in seen:
            inside.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        inside[:] = sorted(name for name in inside if not is_hidden(Path(name)))
        yield from (Path(place, name) for name in sorted(names) if not is_hidden(Path(name)))


def _refuse(error: OSError) -> NoReturn:
    raise error


def is_hidden(path: Path) -> bool:
    """Whether people do not mean a path: hidden files, thumbnails and bins of systems, macOS' archive folder."""
    return path.name.startswith(".") or path.name.lower() in _HIDDEN

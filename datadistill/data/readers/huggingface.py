"""Hugging Face datasets: folders of `save_to_disk`, Parquet files, and names on the hub (extra `hf`)."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datadistill.data.labelled import Labelled
from datadistill.data.options import Options
from datadistill.data.readers.cache import decode_once
from datadistill.data.readers.folder import state_of
from datadistill.data.readers.image_files import Pictures, shown
from datadistill.data.readers.layout import ROLES, joined
from datadistill.data.splits import Splits, class_order, clean_classes
from datadistill.utils.errors import DamagedFileError, DatadistillError, RequestError, how_to_install, reason_of
from datadistill.utils.files import read_json
from datadistill.utils.progress import Bar

PREFIX = "hf:"
_IMAGES = ("image", "img", "pixels", "picture")
_LABELS = ("label", "labels", "fine_label", "target", "class")


def is_saved(folder: Path) -> bool:
    """Whether a folder holds a Hugging Face dataset: from `save_to_disk`, or Parquet files."""
    return _is_saved_to_disk(folder) or bool(_parquets(folder))


def read_saved(path: Path, options: Options, say: Callable[[str], None], bar: Bar) -> Splits:
    """The splits of a folder, or of one Parquet file.

    Args:
        path: the folder or file.
        options: how images are read.
        say: is told of trouble with the cache.
        bar: shows progress.

    Raises:
        RequestError: it has no images and labels; or the extra `hf` is not installed.
        DamagedFileError: it cannot be read.
    """
    datasets = library(str(path))
    check_entries(path)
    try:
        if path.is_file() or not _is_saved_to_disk(path):
            tables = _from_parquet(path)
        else:
            check_inside(path)
            loaded = datasets.load_from_disk(str(path))
            tables = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    except DatadistillError:
        raise
    except Exception as error:  # whatever Arrow and the library raise on damaged files
        raise DamagedFileError(f"{path} is damaged or no Hugging Face dataset: {shown(reason_of(error))}") from error
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    state = "\n".join(f"{one} {state_of(one)}" for one in files)
    return _read(tables, str(path), state, options, say, bar, path if path.is_dir() else path.parent)


def check_entries(folder: Path) -> None:
    """Refuse a folder that holds what is neither file nor folder: the library would wait for a pipe without end.

    Raises:
        DamagedFileError: it does; that is named.
    """
    for entry in folder.rglob("*"):
        if not (entry.is_file() or entry.is_dir()):
            raise DamagedFileError(f"{shown(str(entry))} is no file, or a link that leads nowhere")


def read_hub(name: str, options: Options, say: Callable[[str], None], bar: Bar) -> Splits:
    """The splits of a dataset on the hub, which the library fetches and keeps; no code of its authors is run.

    Args:
        name: `OWNER/NAME`, or `OWNER/NAME:CONFIG`.
        options: how images are read.
        say: is told of trouble with the cache.
        bar: shows progress.

    Raises:
        DatadistillError: it cannot be fetched.
        RequestError: it has no images and labels; or the extra `hf` is not installed.
    """
    datasets = library(PREFIX + name)
    place, _, config = name.partition(":")
    try:
        loaded = datasets.load_dataset(place, config or None)
    except Exception as error:  # the library, its HTTP client and Arrow each have errors of their own
        raise DatadistillError(f"{PREFIX}{shown(name)} could not be loaded: {shown(reason_of(error))}") from error
    tables = dict(loaded)
    state = " ".join(str(table._fingerprint) for table in tables.values())
    return _read(tables, PREFIX + name, state, options, say, bar, None)


def _is_saved_to_disk(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def check_inside(folder: Path) -> None:
    """Refuse a folder of `save_to_disk` that names files elsewhere, which the library would open.

    Raises:
        DamagedFileError: it does, or what names them is damaged.
    """
    splits = _listed(folder / "dataset_dict.json", "splits")
    for place in (folder, *(folder / split for split in splits)):
        for key in ("_data_files", "_indices_files"):
            _listed(place / "state.json", key)


def _listed(file: Path, key: str) -> list[str]:
    """The names that a JSON file lists, each of which is that of something beside it; none where there is no file."""
    document = read_json(file) if file.is_file() else {}
    entries = document.get(key) if isinstance(document, dict) else None
    names = [str(one.get("filename") if isinstance(one, dict) else one) for one in entries or []]
    for name in names:
        if name in ("", ".", "..") or set(name) & set("/\\:"):
            raise DamagedFileError(f"{file} names {shown(name)}, which is not beside it: refused")
    return names


def column_of(table: Any, column: str) -> list[Any]:
    """Values of a column, as they are stored: the library would open and decode what it takes for pictures.

    Raises:
        DamagedFileError: it cannot be read.
    """
    batches = table.with_format("arrow").select_columns([column]).iter(1000)
    try:
        return [value for batch in batches for value in batch[column].to_pylist()]
    except Exception as error:  # whatever Arrow and the library raise on damaged files
        raise DamagedFileError(f"the column {shown(column)} cannot be read: {shown(reason_of(error))}") from error


def library(what: str) -> Any:
    """Hugging Face's `datasets`.

    Raises:
        RequestError: it is not installed; `what` needs it.
    """
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise RequestError(
            f"{what} is a Hugging Face dataset, which needs their library: {how_to_install('datasets>=4')}"
        ) from error


def _parquets(folder: Path) -> list[Path]:
    return sorted(path for pattern in ("*.parquet", "*/*.parquet") for path in folder.glob(pattern))


def _from_parquet(path: Path) -> dict[str, Any]:
    """Tables by split, which the names of files or of their folders say; all is one split where none does."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    by_split: dict[str, list[Path]] = {}
    for file in [path] if path.is_file() else _parquets(path):
        words = file.stem.lower().replace("_", "-").replace(".", "-").split("-")
        words.append(file.parent.name.lower() if file.parent != path else "")
        split = next((name for names in ROLES.values() for name in names if name in words), "train")
        by_split.setdefault(split, []).append(file)
    tables = {split: pa.concat_tables([pq.read_table(file) for file in files]) for split, files in by_split.items()}
    return {split: datasets.Dataset(table) for split, table in tables.items()}


def _read(
    tables: Mapping[str, Any],
    place: str,
    state: str,
    options: Options,
    say: Callable[[str], None],
    bar: Bar,
    inside: Path | None,
) -> Splits:
    """Splits from tables, in their order."""
    chosen = {role: tables[name] for role, names in ROLES.items() for name in reversed(names) if name in tables}
    if "train" not in chosen:
        raise RequestError(f"{place} has no split 'train': it has {shown(', '.join(map(str, tables)))}")
    features = chosen["train"].features
    image, label, remarks = _columns(features, place)
    unused = [str(name) for name, table in tables.items() if all(table is not one for one in chosen.values())]
    if unused:
        remarks.append(f"the splits {joined(unused)} of {place} are passed over")
    for role in [role for role, table in chosen.items() if role != "train" and not _is_labelled(table, image, label)]:
        del chosen[role]
        remarks.append(f"the {role.replace('_', '-')} split of {place} has no labels and is passed over")
    labels, classes = _labels(
        {role: column_of(table, label) for role, table in chosen.items()}, features[label], place, label
    )
    rows = [(role, number) for role, table in chosen.items() for number in range(len(table))]

    def contents() -> Sequence[Path | bytes]:
        return [one for table in chosen.values() for one in _contents(table, image, place, inside)]

    names = tuple(f"{role} image {number}" for role, number in rows)
    decoded = decode_once(Pictures(names, contents, place, state), options, say, bar)
    found = {}
    for role, table in chosen.items():
        mine = [number for number, row in enumerate(decoded.kept) if rows[row][0] == role]
        if len(table):
            kept = [labels[role][rows[decoded.kept[number]][1]] for number in mine]
            found[role] = Labelled(decoded.pixels[mine], torch.tensor(kept, dtype=torch.long))
    if "train" not in found:
        raise RequestError(f"{place} has no images to train on")
    skipped = len(rows) - len(decoded.kept)
    if skipped:
        remarks.append(f"{skipped:,} images of {place} cannot be read and are skipped")
    remarks += decoded.remarks
    return Splits(found["train"], found.get("held_out"), found.get("test"), classes, tuple(remarks), decoded.whites)


def _is_labelled(table: Any, image: str, label: str) -> bool:
    """Whether a split has images and anything but -1 or nothing for a label, as those kept for competitions do not."""
    names = table.features
    return image in names and label in names and not all(one is None or one == -1 for one in column_of(table, label))


def _columns(features: Mapping[str, Any], place: str) -> tuple[str, str, list[str]]:
    """The columns of images and of labels, and what is to be said of others that may be meant."""
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images = [name for name in (*_IMAGES, *kinds) if kinds.get(name) == "Image"]
    images += [name for name in _IMAGES if name in features and name not in images and _has_bytes(features[name])]
    labels = [name for name in _LABELS if name in features]
    labels += [name for name, kind in kinds.items() if kind == "ClassLabel" and name not in labels]
    if not images or not labels:
        have = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        lacking = "images" if not images else f"labels ({', '.join(_LABELS)})"
        raise RequestError(f"{place} has no column of {lacking}: it has {shown(have)}")
    remarks = []
    for what, names in (("images", images), ("labels", labels)):
        others = [name for name in dict.fromkeys(names) if name != names[0]]
        if others:
            remarks.append(f"{what} are the column '{shown(names[0])}' of {place}, not {joined(others)}")
    return images[0], labels[0], remarks


def _has_bytes(feature: Any) -> bool:
    """Whether a column that is not declared to hold images has encoded files."""
    return getattr(feature, "dtype", "") in ("binary", "large_binary") or (
        isinstance(feature, dict) and "bytes" in feature
    )


def _labels(
    columns: dict[str, Any], feature: Any, place: str, column: str
) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """Class indices by split, and class names: the column's own, or made from what is in it."""
    plain = {role: [_whole(one) for one in values] for role, values in columns.items()}
    if any(isinstance(one, list | tuple | dict | np.ndarray) for values in plain.values() for one in values):
        raise RequestError(
            f"the column '{shown(column)}' of {place} has several labels for an image, or lists of them: one label is "
            "needed"
        )
    names = getattr(feature, "names", None)
    if names is not None:
        classes, index = clean_classes(names, place), {number: number for number in range(len(names))}
    else:
        values = set(plain["train"])
        if not (all(type(one) is int for one in values) or all(type(one) is str for one in values)):
            raise RequestError(
                f"the column '{shown(column)}' of {place} has no labels: whole numbers or text are needed"
            )
        ordered = sorted(values, key=lambda one: class_order(str(one)) if isinstance(one, str) else (0, one, ""))
        classes, index = clean_classes([str(one) for one in ordered], place), {v: n for n, v in enumerate(ordered)}
    for role, found in plain.items():
        strange = next((one for one in found if one not in index), None)
        if strange is not None or None in found:
            raise RequestError(
                f"the {role} split of {place} has the label {strange!r:.60}, which is none of its classes"
            )
    return {role: [index[one] for one in found] for role, found in plain.items()}, classes


def _whole(label: Any) -> Any:
    """A label, as a whole number where it is a float or a truth value that stands for one."""
    return int(label) if isinstance(label, bool | float) and float(label).is_integer() else label


def _contents(table: Any, column: str, place: str, inside: Path | None) -> list[Path | bytes]:
    """The encoded files of a split."""
    found: list[Path | bytes] = []
    for value in column_of(table, column):
        one = value if isinstance(value, dict) else {"bytes": value}
        if one.get("bytes") is not None:
            found.append(one["bytes"])
            continue
        if not one.get("path"):
            found.append(b"")  # which is reported, or skipped, as what cannot be read
            continue
        path = Path(inside or "", str(one["path"]))
        # A dataset from elsewhere may name any file of this machine.
        if inside is not None and not path.resolve().is_relative_to(inside.resolve()):
            raise RequestError(f"{place} does not hold its images, but names {shown(str(path))} outside: refused")
        found.append(path)
    return found

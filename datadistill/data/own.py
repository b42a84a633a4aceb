"""Data of one's own: folders, NPZ files, Hugging Face datasets, arrays and `Dataset`s become RealData."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from torch.utils.data import Dataset

from datadistill.data.arrays import Named, Pair, as_array, read_arrays
from datadistill.data.options import Options
from datadistill.data.readers.folder import read_folder
from datadistill.data.readers.huggingface import PREFIX, is_saved, read_hub, read_saved
from datadistill.data.readers.idx import is_idx, read_idx_folder
from datadistill.data.readers.image_files import shown
from datadistill.data.readers.npz import read_npz
from datadistill.data.readers.torch_dataset import collect
from datadistill.data.real import RealData, Source
from datadistill.data.splits import assemble
from datadistill.utils.errors import RequestError, explain_os_error
from datadistill.utils.fields import check_names, options_in, with_options
from datadistill.utils.progress import Bar, counting, say

Say: TypeAlias = Callable[[str], None]
Datasets: TypeAlias = tuple[Dataset[Any], Dataset[Any]]
"""A training and a test split."""

_IN_MEMORY = [option for option in options_in(Options) if option.name in ("size", "channels", "white")]
"""How images are read that lie in no file."""


def is_external(name: str) -> bool:
    """Whether a name is that of a folder, a file or a Hugging Face dataset, there or not."""
    if name.lower().startswith(PREFIX) or "/" in name or "\\" in name or name.startswith((".", "~")):
        return True
    if name.lower().endswith((".npz", ".parquet")):
        return True
    try:
        return bool(name) and Path(name).exists()
    except (OSError, ValueError):  # too long, or with a zero in it
        return False


def load_external(given: str, options: Options, say: Say, bar: Bar) -> RealData:
    """A folder, a file or a Hugging Face dataset.

    Args:
        given: a path, or `hf:NAME`.
        options: how images are read.
        say: is told what was inferred.
        bar: shows progress.

    Raises:
        RequestError: there is no such thing, or it is laid out in another way.
        DamagedFileError: it cannot be read.
    """
    if given.lower().startswith(PREFIX):
        name = given[len(PREFIX) :]
        found, place = read_hub(name, options, say, bar), given
    else:
        try:
            path = Path(given).expanduser().resolve()
            is_folder, is_file = path.is_dir(), path.is_file()
        except OSError as error:
            raise explain_os_error(error, f"read {shown(given)}") from error
        except (ValueError, RuntimeError) as error:
            raise RequestError(f"'{shown(given)}' is no path: {error}") from error
        if is_folder and is_saved(path):
            found = read_saved(path, options, say, bar)
        elif is_folder and is_idx(path):
            found = read_idx_folder(path, options)
        elif is_folder:
            found = read_folder(path, options, say, bar)
        elif is_file and path.suffix.lower() == ".npz":
            found = read_npz(path, options)
        elif is_file and path.suffix.lower() == ".parquet":
            found = read_saved(path, options, say, bar)
        elif is_file:
            raise RequestError(f"{shown(given)} is neither a folder of images nor an .npz or .parquet file")
        else:
            raise RequestError(f"there is no folder or file {shown(given)}")
        name, place = path.stem if is_file else path.name, str(path)
    return assemble(short_name(name), Source(given, place, options), found, say)


def short_name(name: str) -> str:
    """A name that can be part of a file's name."""
    return re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-.")[:40] or "data"


@with_options(_IN_MEMORY)
def from_arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any = None,
    y_test: Any = None,
    x_val: Any = None,
    y_val: Any = None,
    *,
    classes: Any = None,
    name: str = "arrays",
    say: Say = say,
    **options: Any,
) -> RealData:
    """A dataset from NumPy arrays, in their order.

    Args:
        x_train: [n, h, w], [n, h, w, c] or [n, c, h, w], as an array, a tensor or a list: whole numbers from 0 to 255,
            or more; or floats from 0 to 1, or to 255; all are rounded to 8 bit.
        y_train: whole numbers or text: [n], [n, 1], or one-hot [n, k].
        x_test: without them a stratified fifth of the training images is the test split.
        y_test: as `y_train`.
        x_val: what every choice is made by; without them a stratified tenth of the training images.
        y_val: as `y_train`.
        classes: names by index; made from the labels without them.
        name: the dataset's name.
        say: is told what was inferred.
        **options: how images are read; inferred without them:

    Raises:
        RequestError: naming the array that is no images, or no labels.
        TypeError: there is no option of that name.
    """
    how = _check_given("x_train", x_train, name, options)
    given = {"train": (x_train, y_train), "held_out": (x_val, y_val), "test": (x_test, y_test)}
    words = {"train": "train", "held_out": "val", "test": "test"}
    pairs: dict[str, Pair] = {}
    for role, (images, labels) in given.items():
        if (images is None) != (labels is None):
            raise RequestError(f"x_{words[role]} and y_{words[role]} belong together: give both, or neither")
        if images is not None and labels is not None:
            names = f"x_{words[role]}", f"y_{words[role]}"
            pairs[role] = Named(names[0], as_array(images, names[0])), Named(names[1], as_array(labels, names[1]))
    return assemble(short_name(name), Source(name, "", how), read_arrays(name, pairs, classes, how), say)


@with_options(_IN_MEMORY)
def from_datasets(
    train: Dataset[Any],
    test: Dataset[Any] | None = None,
    val: Dataset[Any] | None = None,
    *,
    classes: Any = None,
    name: str = "datasets",
    say: Say = say,
    bar: Bar = counting,
    **options: Any,
) -> RealData:
    """A dataset from `torch.utils.data.Dataset`s of pairs (image, label), each read once, in order.

    Args:
        train: images are Pillow's, or tensors [C, H, W] or arrays [H, W, C] as `from_arrays` takes them: without
            augmentation, and not normalised.
        test: without one a stratified fifth of the training images is the test split.
        val: what every choice is made by; without one a stratified tenth of the training images.
        classes: names by index; those of `train.classes`, or made from the labels, without them.
        name: the dataset's name.
        say: is told what was inferred.
        bar: shows progress.
        **options: how images are read; inferred without them:

    Raises:
        RequestError: they do not give pairs of an image and a label.
        TypeError: there is no option of that name.
    """
    how = _check_given("train", train, name, options)
    given = {"train": train, "held_out": val, "test": test}
    collected = collect({role: one for role, one in given.items() if one is not None}, name, how, bar)
    known = getattr(train, "classes", None)
    if classes is None and isinstance(known, list | tuple) and all(isinstance(one, str) for one in known):
        classes = known
    found = read_arrays(name, collected.pairs, classes, how)
    found = replace(found, whites=(*collected.whites, *found.whites), remarks=(*collected.remarks, *found.remarks))
    return assemble(short_name(name), Source(name, "", how), found, say)


def _check_given(what: str, value: Any, name: Any, options: Mapping[str, Any]) -> Options:
    """Options of reading images; data without a training split, and a name that is none, are refused.

    Raises:
        RequestError: naming the argument.
        TypeError: there is no option of that name.
    """
    if value is None:
        raise RequestError(f"{what} is None, but nothing can be distilled without it")
    if not isinstance(name, str):
        raise RequestError(f"name is {name!r:.60}, but must be text")
    check_names(options, _IN_MEMORY, what)
    return Options(**options)


def as_real(data: RealData | Datasets) -> RealData:
    """Itself; or a training and a test `Dataset` as RealData.

    Raises:
        RequestError: it is neither.
    """
    if isinstance(data, RealData):
        return data
    given: Any = data
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise RequestError(
            f"the dataset is a {type(given).__name__}, but must be RealData, as dd.load, dd.from_arrays and "
            "dd.from_datasets give it, or a pair of a training and a test Dataset"
        )
    return from_datasets(*given)

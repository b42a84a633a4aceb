"""RealData from splits of one's own: what is missing is made, what is odd is said."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import UInt8
from torch import Tensor

from datadistill.data.labelled import Labelled
from datadistill.data.readers.image_files import shown
from datadistill.data.real import RealData, Source, from_pixels, set_apart
from datadistill.utils.errors import RequestError, some_of

TEST_SHARE = 5
"""Where there is neither a test nor a validation split, one in so many images of the training split makes it."""


MOST_CLASSES = 10_000


@dataclass(frozen=True, eq=False)
class Splits:
    """Splits as a reader found them.

    Attributes:
        train: the training split.
        held_out: a validation split, if there is one.
        test: the test split, if there is one.
        classes: names, by index.
        remarks: sentences on what was odd.
        whites: the numbers that were taken for white, where images did not come in 8 bits.
    """

    train: Labelled
    held_out: Labelled | None
    test: Labelled | None
    classes: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    whites: tuple[int | float, ...] = ()


def class_order(name: str) -> tuple[int, int, str]:
    """Numbers as numbers, 2 before 10; then everything else as text."""
    return (0, int(name), name) if name.isascii() and name.isdigit() and len(name) < 20 else (1, 0, name)


def clean_classes(names: Sequence[str], what: str) -> tuple[str, ...]:
    """Class names that can be printed: one line each, and not endless.

    Raises:
        RequestError: fewer than two, or two that cannot be told apart.
    """
    cleaned = tuple(shown(name) for name in names)
    if len(cleaned) < 2:
        have = f"only the class '{cleaned[0]}'" if cleaned else "no classes"
        raise RequestError(f"{what} has {have}, but at least 2 are needed")
    if len(cleaned) > MOST_CLASSES:
        raise RequestError(f"{what} has {len(cleaned):,} different labels, but classes are at most {MOST_CLASSES:,}")
    if len(set(cleaned)) < len(cleaned):
        twice = next(name for name in cleaned if cleaned.count(name) > 1)
        raise RequestError(f"{what} has two classes that are called '{twice}'")
    return cleaned


def assemble(name: str, source: Source, found: Splits, say: Callable[[str], None]) -> RealData:
    """RealData from splits.

    Args:
        name: the dataset's name.
        source: where it comes from, still without a digest.
        found: the splits.
        say: is told what was inferred.

    Raises:
        RequestError: there are too few images.
    """
    if found.test is None and found.held_out is not None:
        # As in ImageNet: what such sets call validation is what their results are reported on.
        remark = (
            "there is no test split: the validation split is taken for one, and choices are made by training images"
        )
        found = replace(found, test=found.held_out, held_out=None, remarks=(remark, *found.remarks))
    given = {"train": found.train, "held_out": found.held_out, "test": found.test}
    splits = {role: split for role, split in given.items() if split is not None}
    for role, split in splits.items():
        if len(split.labels) == 0:
            raise RequestError(f"{source.given} has no images to {'train on' if role == 'train' else 'judge by'}")
    prints = {role: _prints(split.pixels) for role, split in splits.items()}
    digest = _digest(splits, prints, found.classes)
    if "test" not in splits:
        _cut_test(splits, prints)
    counts = torch.bincount(splits["train"].labels, minlength=len(found.classes))
    source = replace(source, digest=digest)
    real = from_pixels(name, splits["train"], splits["test"], found.classes, splits.get("held_out"), source)
    fewest = int(real.train.counts.argmin())
    if int(real.train.counts[fewest]) == 0 or len(real.held_out) == 0:
        raise RequestError(
            f"{source.given} has too few images: {int(counts[fewest])} of class '{found.classes[fewest]}' and "
            f"{len(splits['train'].labels)} in all are left to train on, less a slice for every choice"
        )
    say(_sizes(real, found))
    say(_statistics(real, found.whites))
    unasked = source.options.white is not None and not found.whites
    for remark in (
        *(["white is 255, whatever was asked: all images have 8 bits"] if unasked else []),
        *found.remarks,
        *_missing(real),
        *_duplicates(prints, source.given),
    ):
        say(remark)
    return real


def _prints(pixels: UInt8[Tensor, "n h w c"]) -> list[bytes]:
    """A hash of each image's pixels."""
    plain = pixels.contiguous().numpy()
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in plain]


def _digest(splits: dict[str, Labelled], prints: dict[str, list[bytes]], classes: tuple[str, ...]) -> str:
    """SHA-256 of everything that a run can see, hexadecimal."""
    found = hashlib.sha256("\n".join(classes).encode())
    for role, split in splits.items():
        found.update(f"{role} {tuple(split.pixels.shape)}".encode())
        found.update(b"".join(prints[role]))
        found.update(split.labels.numpy().tobytes())
    return found.hexdigest()


def _cut_test(splits: dict[str, Labelled], prints: dict[str, list[bytes]]) -> None:
    """Take a stratified share of the training split, always the same, for the test split."""
    train = splits["train"]
    splits["train"], splits["test"] = set_apart(train, len(train.labels) // TEST_SHARE, seed=1)
    for role in ("train", "test"):
        prints[role] = _prints(splits[role].pixels)


def _sizes(real: RealData, found: Splits) -> str:
    held_out = "val" if found.held_out is not None else "of the training split"
    test = "" if found.test is not None else ", a fifth of the images as there is no test split"
    colour = "grey" if real.in_channels == 1 else "colour"
    return (
        f"{real.name}: {real.num_classes} classes, {real.image_size}x{real.image_size} {colour}; {len(real.train):,} "
        f"images to train on, {len(real.held_out):,} held out ({held_out}), {len(real.test):,} to test on{test}"
    )


def _statistics(real: RealData, whites: tuple[int | float, ...]) -> str:
    mean, std = (
        " ".join(f"{value:.4f}" for value in values) for values in (real.normalization.mean, real.normalization.std)
    )
    counts = real.train.counts
    low, high = int(counts.argmin()), int(counts.argmax())
    classes = f"{int(counts[low]):,} training images of each class"
    if counts[low] != counts[high]:
        classes = (
            f"unequal classes: from {int(counts[low]):,} training images ({real.classes[low]}) to "
            f"{int(counts[high]):,} ({real.classes[high]})"
        )
    white = "".join(f"; {number:.10g} is white" for number in whites)
    return f"mean {mean}, deviation {std}; {classes}{white}"


def _missing(real: RealData) -> list[str]:
    """Remarks on classes that the test or held-out split lacks."""
    found = []
    for split, what, result in (
        (real.test, "test", "test accuracies are those of the others"),
        (real.held_out, "held-out", "choices are made by the others"),
    ):
        names = [name for name, count in zip(real.classes, split.counts.tolist(), strict=True) if not count]
        if names:
            plural = "es" if len(names) > 1 else ""
            found.append(f"there are no {what} images of class{plural} {some_of(names)}: {result}")
    return found


def _duplicates(prints: dict[str, list[bytes]], given: str) -> list[str]:
    """Remarks on test or held-out images that are among those to train on, too."""
    train, held_out = set(prints["train"]), set(prints.get("held_out", []))
    in_test = sum(one in train or one in held_out for one in prints["test"])
    in_held_out = sum(one in train for one in prints.get("held_out", []))
    found = {"test": (in_test, len(prints["test"])), "held-out": (in_held_out, len(prints.get("held_out", [])))}
    return [
        f"{count:,} of the {total:,} {role} images of {given} are images to train on, too: accuracies will flatter"
        for role, (count, total) in found.items()
        if count
    ]

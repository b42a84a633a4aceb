"""Folders as people unpack them: what is guessed about them, and what is left out, is said."""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datadistill as dd


def fill(folder: Path, *files: str, count: int = 12) -> Path:
    """Pictures, so many for each name; `{}` in a name is a number."""
    for file in files:
        for number in range(count):
            path = folder / file.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(zlib.crc32(str(path).encode())).integers(0, 256, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(path, "PNG")
    return folder


def load(folder: Path) -> tuple[dd.RealData, str]:
    heard = list[str]()
    real = dd.load(folder, say=heard.append)
    return real, "\n".join(heard[2:])


def sizes(real: dd.RealData) -> tuple[int, int, int]:
    return len(real.train), len(real.held_out), len(real.test)


CLASSES = ("cat/{}.png", "dog/{}.png")
TRAIN, TEST = (tuple(f"{split}/{name}" for name in CLASSES) for split in ("train", "test"))


@pytest.mark.parametrize(
    ("files", "remark"),
    [
        ((*TRAIN, "test/{}.png"), "12 images of .* lie in no class folder and are passed over"),
        ((*CLASSES, "{}.png"), "12 images of .* lie in no class folder and are passed over"),
        ((*TRAIN, "{}.png"), "12 images of .* lie in no class folder and are passed over"),
        ((*TRAIN, "unlabelled/{}.png", "pred/pred/{}.png"), "24 images in pred, unlabelled passed over: beside train"),
        ((*TRAIN, *TEST, "val/cat/{}.png", "validation/cat/{}.png"), "12 images in validation passed over"),
        ((*CLASSES, "cat/small/{}.png"), r"12 images lie in folders within those of the classes \(small\)"),
    ],
)
def test_what_is_left_out_is_said(files: tuple[str, ...], remark: str, tmp_path: Path) -> None:
    real, said = load(fill(tmp_path / "d", *files))
    assert real.classes == ("cat", "dog")
    assert re.search(remark, said)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("training_set", "test_set"),
        ("train/train", "test/test"),
        ("d/train", "d/test"),
        ("d/d/Training", "d/d/Testing"),
        ("flowers-train", "flowers-test"),
    ],
)
def test_splits_are_found_where_archives_put_them(train: str, test: str, tmp_path: Path) -> None:
    files = [f"{split}/{name}" for split in (train, test) for name in CLASSES]
    real, said = load(fill(tmp_path / "d", *files))
    assert real.classes == ("cat", "dog")
    assert sizes(real) == (22, 2, 24)
    assert bool(said) == (train != "train/train")


def test_splits_within_classes_are_found(tmp_path: Path) -> None:
    files = [f"{label}/{split}/{{}}.png" for label in ("cat", "dog") for split in ("train", "val", "test")]
    real, said = load(fill(tmp_path / "d", *files))
    assert real.classes == ("cat", "dog")
    assert sizes(real) == (24, 24, 24)
    assert "taken for splits" in said


def test_classes_that_may_be_splits_are_questioned(tmp_path: Path) -> None:
    _, said = load(fill(tmp_path / "folds", *(f"fold{fold}/{name}" for fold in (1, 2) for name in CLASSES)))
    assert "class fold1 holds folders alone, which are called like others (cat, dog): is it a split?" in said
    _, said = load(fill(tmp_path / "copy", *CLASSES, *(f"pets/{name}" for name in CLASSES)))
    assert "class pets holds folders alone" in said
    _, said = load(fill(tmp_path / "odd", "train/{}.png", "test/{}.png", "plane/{}.png"))
    assert "test, train are taken for classes of their own: are they splits?" in said
    with pytest.raises(
        dd.RequestError, match=r"test, train of .* look like splits, but not each of them holds folders"
    ):
        load(fill(tmp_path / "flat", "train/{}.png", "test/{}.png"))


def test_classes_with_a_split_in_their_name_stay_classes(tmp_path: Path) -> None:
    real, said = load(fill(tmp_path / "d", "steam_train/{}.png", "test_tube/{}.png"))
    assert real.classes == ("steam_train", "test_tube")
    assert not said
    real, _ = load(fill(tmp_path / "e", "steam_train/old/{}.png", "test_tube/new/{}.png"))
    assert real.classes == ("steam_train", "test_tube")


@pytest.mark.parametrize("name", ["@eaDir/0.png/SYNOPHOTO_THUMB_M.png", "#recycle/{}.png", ".@__thumb/{}.png"])
def test_thumbnails_and_bins_are_no_images(name: str, tmp_path: Path) -> None:
    real, said = load(fill(tmp_path / "d", *CLASSES, f"cat/{name}", name))
    assert real.classes == ("cat", "dog")
    assert sum(sizes(real)) == 24
    assert not said


def test_classes_that_a_split_lacks_are_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "d", *TRAIN, TEST[0], "val/dog/{}.png")
    (folder / "test/dog").mkdir()
    _, said = load(folder)
    assert "there are no test images of class dog: test accuracies are those of the others" in said
    assert "there are no held-out images of class cat: choices are made by the others" in said
    many = fill(tmp_path / "many", *(f"class{number:02d}/{{}}.png" for number in range(12)), count=3)
    _, said = load(many)
    assert re.search(r"there are no held-out images of classes class\d\d, .* and 4 more: choices", said)

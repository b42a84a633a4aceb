"""Digits, written in all the ways that one's own data may come in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def digit_arrays(train: int = 300, test: int = 100) -> Arrays:
    """Images [n, 8, 8] and labels, 8 bit, in scikit-learn's order."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = np.rint(bunch.images / 16 * 255).astype(np.uint8), bunch.target.astype(np.int64)
    return images[:train], labels[:train], images[train : train + test], labels[train : train + test]


def write_folder(folder: Path, arrays: Arrays, suffix: str = ".png") -> Path:
    """PNG files whose names sort as the arrays' order."""
    for split, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = folder / split / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number:05d}{suffix}")
    return folder


def write_npz(path: Path, arrays: Arrays) -> Path:
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez_compressed(path, **dict(zip(names, arrays, strict=True)))
    return path


def write_hugging_face(folder: Path, arrays: Arrays) -> Path:
    import datasets

    names = [str(label) for label in sorted(set(arrays[1].tolist()))]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    tables = {
        split: datasets.Dataset.from_dict(
            {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}, features=features
        )
        for split, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:]))
    }
    datasets.DatasetDict(tables).save_to_disk(str(folder))
    return folder


@dataclass
class Pairs(Dataset[Any]):
    """Arrays as pairs of a Pillow image and a label."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.labels[index])

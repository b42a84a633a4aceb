"""Folders of tensors: those of MTT and the methods after it, and those of DD-Ranking."""

from pathlib import Path

from datadistill.distilled import DistilledData
from datadistill.formats.base import Foreign, only_rate, take_pair, take_rate, whole_folder
from datadistill.formats.pickles import read_pickle, write_pickle
from datadistill.utils.errors import RequestError


def write_mtt(distilled: DistilledData, path: Path) -> None:
    """`images_best.pt`, `labels_best.pt` and, where all steps have one rate, `lr_best.pt`."""
    _write(distilled, path, "_best")


def write_dd_ranking(distilled: DistilledData, path: Path) -> None:
    """`images.pt`, `labels.pt` (soft labels, where there are any) and, where all steps have one rate, `lr.pt`."""
    _write(distilled, path, "")


def _write(distilled: DistilledData, path: Path, ending: str) -> None:
    tensors = {"images": distilled.images, "labels": distilled.targets, "lr": only_rate(distilled.learning_rates)}
    with whole_folder(path) as folder:
        for name, tensor in tensors.items():
            if tensor is not None:
                write_pickle(folder / f"{name}{ending}.pt", tensor.cpu())


def read_mtt(path: Path) -> list[Foreign]:
    """The folder's one set; the rate may lie in `lr_best.pt`, `syn_lr_best.pt` or `lr.pt`.

    Raises:
        RequestError: there are no images or labels.
        DamagedFileError: a file is damaged, or holds something else.
    """
    return [_read(path, "_best", ("lr_best.pt", "syn_lr_best.pt", "lr.pt"))]


def read_dd_ranking(path: Path) -> list[Foreign]:
    """The folder's one set.

    Raises:
        RequestError: there are no images or labels.
        DamagedFileError: a file is damaged, or holds something else.
    """
    return [_read(path, "", ("lr.pt",))]


def _read(folder: Path, ending: str, rates: tuple[str, ...]) -> Foreign:
    for name in (f"images{ending}.pt", f"labels{ending}.pt"):
        if not (folder / name).is_file():
            raise RequestError(f"there is no {name} in {folder}")
    images, labels, soft = take_pair(*(read_pickle(folder / f"{name}{ending}.pt") for name in ("images", "labels")))
    found = [folder / name for name in rates if (folder / name).is_file()]
    rate = take_rate(read_pickle(found[0]), "the learning rate") if found else None
    return Foreign(images, labels, soft_labels=soft, rate=rate)

"""Folders of tensors: those of MTT and the methods after it, and those of DD-Ranking."""

from pathlib import Path

from torch import Tensor

from datadistill.distilled import DistilledData
from datadistill.formats.base import Foreign, only_rate, take_images, take_labels, take_rate, whole_folder
from datadistill.formats.pickles import read_pickle, write_pickle
from datadistill.utils.errors import RequestError, require


def write_mtt(distilled: DistilledData, path: Path) -> None:
    """`images_best.pt`, `labels_best.pt` and, where all steps have one rate, `lr_best.pt`."""
    with whole_folder(path) as folder:
        _write(distilled, folder, "_best", distilled.targets)


def write_dd_ranking(distilled: DistilledData, path: Path) -> None:
    """`images.pt`, `labels.pt` (soft labels, where there are any) and, where all steps have one rate, `lr.pt`."""
    with whole_folder(path) as folder:
        _write(distilled, folder, "", distilled.targets)


def _write(distilled: DistilledData, folder: Path, ending: str, targets: Tensor) -> None:
    write_pickle(folder / f"images{ending}.pt", distilled.images.cpu())
    write_pickle(folder / f"labels{ending}.pt", targets.cpu())
    rate = only_rate(distilled.learning_rates)
    if rate is not None:
        write_pickle(folder / f"lr{ending}.pt", rate.cpu())


def read_mtt(path: Path) -> list[Foreign]:
    """The folder's one set; the rate may lie in `lr_best.pt`, `syn_lr_best.pt` or `lr.pt`."""
    return [_read(path, "_best", ("lr_best.pt", "syn_lr_best.pt", "lr.pt"))]


def read_dd_ranking(path: Path) -> list[Foreign]:
    """The folder's one set."""
    return [_read(path, "", ("lr.pt",))]


def _read(folder: Path, ending: str, rates: tuple[str, ...]) -> Foreign:
    for name in (f"images{ending}.pt", f"labels{ending}.pt"):
        if not (folder / name).is_file():
            raise RequestError(f"there is no {name} in {folder}")
    images = take_images(read_pickle(folder / f"images{ending}.pt"), "the images")
    labels, soft = take_labels(read_pickle(folder / f"labels{ending}.pt"), "the labels")
    require(len(images) == len(labels), f"there are {len(images)} images and {len(labels)} labels")
    found = [folder / name for name in rates if (folder / name).is_file()]
    rate = take_rate(read_pickle(found[0]), "the learning rate") if found else None
    return Foreign(images, labels, soft_labels=soft, rate=rate)

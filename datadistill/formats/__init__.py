"""Formats of other programs: distilled data goes out to them and comes in from them."""

import zipfile
from dataclasses import replace
from pathlib import Path

from datadistill.data.real import RealData
from datadistill.data.transforms import Normalization
from datadistill.distilled import DistilledData, load_distilled
from datadistill.formats.base import HELD, FormatInfo, Usage, assemble, normalized
from datadistill.formats.dc import read_dc, write_dc
from datadistill.formats.dd2018 import read_2018, write_2018
from datadistill.formats.folders import read_dd_ranking, read_mtt, write_dd_ranking, write_mtt
from datadistill.formats.hf import read_hf, write_hf
from datadistill.formats.npz import read_npz, write_npz
from datadistill.formats.png import read_png, write_png
from datadistill.formats.sidecar import NAME
from datadistill.training.carried import in_format_1
from datadistill.utils.errors import DamagedFileError, RequestError
from datadistill.utils.files import check_free
from datadistill.utils.registry import Registry

__all__ = ["FORMATS", "FormatInfo", "Usage", "export_to", "guess_format", "import_from"]

# What this family of codes normalises CIFAR-10 by are not the deviations of its pixels.
_DC_NORMALIZATIONS = {"cifar-10": Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))}
_2018_NORMALIZATIONS = {"usps": Normalization((0.15972736477851868,), (0.25726667046546936,))}
_HISTORY = "class names, normalisation, provenance"


FORMATS = Registry(
    "format",
    (
        FormatInfo(
            name="1",
            line="our own format 1, for programs from before format 2: docs/file-format.md",
            suffix=".safetensors",
            loses="nothing; recipes of training that it cannot say are refused",
            holds=HELD,
            write=lambda distilled, path: in_format_1(distilled).save(path),
            read=lambda path: [load_distilled(path)],
            recognises=lambda path: path.suffix == ".safetensors",
        ),
        FormatInfo(
            name="dc",
            line="res_METHOD_DATASET_MODEL_Nipc.pt of DC, DSA and DM: images and hard labels",
            suffix=".pt",
            loses=f"soft labels, batches, rates, initial weights, {_HISTORY}",
            holds=(),
            write=write_dc,
            read=read_dc,
            recognises=lambda path: path.suffix == ".pt",
            normalizations=_DC_NORMALIZATIONS,
        ),
        FormatInfo(
            name="mtt",
            line="folder with images_best.pt, labels_best.pt and lr_best.pt of MTT and those after it",
            suffix="",
            loses=f"batches, rates if they differ, initial weights, {_HISTORY}",
            holds=("soft labels", "rate"),
            write=write_mtt,
            read=read_mtt,
            recognises=lambda path: (path / "images_best.pt").is_file(),
            labels="logits",  # DATM and others after MTT learn them as such
            normalizations=_DC_NORMALIZATIONS,
        ),
        FormatInfo(
            name="2018",
            line="results.pth of Wang et al. 2018: images, hard labels and rate of each step",
            suffix=".pth",
            loses=f"soft labels, initial weights, {_HISTORY}",
            holds=("batches", "rates", "rate"),
            write=write_2018,
            read=read_2018,
            recognises=lambda path: path.suffix == ".pth",
            model="lenet",
            scheme="xavier",
            normalizations=_2018_NORMALIZATIONS,
        ),
        FormatInfo(
            name="dd-ranking",
            line="folder with images.pt, labels.pt and lr.pt that DD-Ranking judges",
            suffix="",
            loses=f"batches, rates if they differ, initial weights, {_HISTORY}",
            holds=("soft labels", "rate"),
            write=write_dd_ranking,
            read=read_dd_ranking,
            recognises=lambda path: (path / "images.pt").is_file(),
            normalizations=_DC_NORMALIZATIONS,
        ),
        FormatInfo(
            name="npz",
            line="NumPy arrays with the provenance as JSON",
            suffix=".npz",
            loses="nothing",
            holds=HELD,
            write=write_npz,
            read=read_npz,
            recognises=lambda path: path.suffix == ".npz",
        ),
        FormatInfo(
            name="hf",
            line="Hugging Face dataset folder with float images (extra hf)",
            suffix="",
            loses="initial weights",
            holds=("batches", "rates", "rate", "soft labels", "provenance"),
            write=write_hf,
            read=read_hf,
            recognises=lambda path: (path / "dataset_info.json").is_file(),
        ),
        FormatInfo(
            name="png",
            line="folder of 8-bit pictures for each class, as torchvision's ImageFolder reads it",
            suffix="",
            loses="values outside black and white, rounding to 8 bits, initial weights",
            holds=("batches", "rates", "rate", "soft labels", "provenance"),
            write=write_png,
            read=read_png,
            recognises=lambda path: path.is_dir() and ((path / NAME).is_file() or any(path.glob("*/*.png"))),
        ),
    ),
)


def export_to(distilled: DistilledData, name: str, path: str | Path) -> list[str]:
    """Write distilled data in a format of another program.

    Args:
        distilled: the data.
        name: one of `FORMATS`.
        path: a file or folder that is not there yet.

    Returns:
        What the format could not hold.

    Raises:
        RequestError: there is something at the path, or the format cannot hold such images.
    """
    info, path = FORMATS.get(name), Path(path)
    check_free(path)
    if distilled.provenance.normalization.zca is not None and "whitening" not in info.holds:
        raise RequestError(f"the images are whitened (ZCA), and format {info.name} cannot say how: export them to npz")
    info.write(_as_theirs(distilled, info), path)
    return info.lost(distilled)


def _as_theirs(distilled: DistilledData, info: FormatInfo) -> DistilledData:
    """Data normalised as a format's own program does it."""
    about = distilled.provenance
    theirs = info.normalizations.get(about.dataset.lower())
    if theirs is None or len(theirs.mean) != len(about.normalization.mean):
        return distilled
    images = normalized(distilled.pixels(), theirs)
    return replace(distilled.noted(normalization=theirs), images=images)


def guess_format(path: Path) -> FormatInfo:
    """The format that a file or folder looks like.

    Raises:
        RequestError: there is nothing there, or nothing that is known.
    """
    if not path.exists():
        raise RequestError(f"there is nothing at {path} to import")
    for info in FORMATS:
        if info.recognises(path):
            return info
    raise RequestError(f"{path} looks like none of {', '.join(FORMATS.names())}: say with --from what it is")


def import_from(
    path: str | Path,
    name: str | None = None,
    *,
    real: RealData | None = None,
    usage: Usage | None = None,
    number: int = 1,
    recipe: str = "",
) -> DistilledData:
    """Read distilled data in a format of another program. Nothing in the file is executed.

    Args:
        path: a file or folder.
        name: one of `FORMATS`; found out without it.
        real: the dataset that it belongs to; not needed where the file holds everything.
        usage: what else the file does not say.
        number: which of several sets in the file, from 1.
        recipe: what to record as the command that made the result.

    Raises:
        RequestError: its classes, shape or normalisation are not the dataset's, or there is no dataset.
        DamagedFileError: the file is damaged, or reading it would run code.
        DatadistillError: it cannot be read at all.
    """
    path = Path(path)
    info = guess_format(path) if name is None else FORMATS.get(name)
    if not (path.is_file() if info.suffix else path.is_dir()):
        raise RequestError(f"format {info.name} is a {'file' if info.suffix else 'folder'}, which {path} is not")
    try:
        sets = info.read(path)
        if not 1 <= number <= len(sets):
            raise RequestError(f"{path} holds {len(sets)} sets: set {number} is not one of them")
        found = sets[number - 1]
        if isinstance(found, DistilledData):
            if real is not None:
                found.check_matches(real)
            return found
        if real is None:
            raise RequestError(f"{path} says nothing of its dataset: name it with --dataset")
        return assemble(info, found, real, usage or Usage(info.model, info.scheme), recipe)
    except (DamagedFileError, zipfile.BadZipFile) as error:
        reason = str(error)
        raise DamagedFileError(reason if str(path) in reason else f"{path} is no {info.name}: {reason}") from error

"""Interface of formats, and DistilledData from data without provenance."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from datadistill.data.compatibility import check_classes, check_normalization, check_shape
from datadistill.data.real import RealData
from datadistill.data.transforms import Normalization
from datadistill.distilled import DistilledData, Provenance, parse_distilled
from datadistill.training.carried import own_steps
from datadistill.utils.errors import RequestError, explain_os_error, require
from datadistill.utils.fields import check_numbers


@dataclass(frozen=True, eq=False)
class Foreign:
    """Distilled data as another program leaves it.

    Attributes:
        images: as the other program's network was fed, or
        pixels: as they are in a picture; one of both.
        labels: class indices, or names' positions in `classes`.
        soft_labels: if there are any.
        batches: which images each step uses; all at once without them.
        learning_rates: of the steps.
        rate: one rate for all steps.
        classes: names by index, if the file says.
    """

    images: Float[Tensor, "n c h w"] | None
    labels: Int64[Tensor, "n"]
    pixels: UInt8[Tensor, "n h w c"] | None = None
    soft_labels: Float[Tensor, "n k"] | None = None
    batches: Int64[Tensor, "s b"] | None = None
    learning_rates: Float[Tensor, "t"] | None = None
    rate: float | None = None
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Usage:
    """Facts that a foreign file does not hold, from whoever imports it.

    Attributes:
        model: the network that the images are for.
        scheme: how its weights are drawn.
        rate: one learning rate for all steps, where the file has none.
        epochs: how often its images are walked with one rate.
        normalization: that the images were made with; what the format is known for, or the dataset's, without it.
        renormalize: turn images of another normalisation into the dataset's instead of refusing them.
        classes: names by index.
        labels: what numbers for each class are: `shares`, as the loss takes them whatever they add up to, or `logits`,
            of which a softmax makes shares; without it what they look like.
    """

    model: str
    scheme: str = "default"
    rate: float | None = None
    epochs: int = 300
    normalization: Normalization | None = None
    renormalize: bool = False
    classes: tuple[str, ...] | None = None
    labels: str | None = None

    def __post_init__(self) -> None:
        check_numbers(self, {"epochs": 1})
        if self.rate is not None and not 0 < self.rate < 1e38:
            raise RequestError(f"rate is {self.rate:g}, but must be positive")
        if self.labels not in (None, "shares", "logits"):
            raise RequestError(f"labels is {self.labels}, but must be shares or logits")


HELD = ("batches", "rates", "rate", "soft labels", "initial weights", "provenance", "whitening")
"""What a format may hold beside images and hard labels; `rate` is one for all steps."""


@dataclass(frozen=True)
class FormatInfo:
    """A file format of another program.

    Attributes:
        name: what people type.
        line: one line of explanation.
        suffix: of the file; empty for a folder.
        loses: what it cannot hold, in a few words.
        holds: what it can, of `HELD`.
        write: writes the data to a place where nothing is.
        read: the sets that a file or folder holds.
        recognises: whether something looks like it.
        model: what its images are usually for.
        scheme: how that program draws weights.
        labels: what numbers for each class are that are no shares, if that is known.
        normalizations: by dataset, where that program's differ from ours.
    """

    name: str
    line: str
    suffix: str
    loses: str
    holds: tuple[str, ...]
    write: Callable[[DistilledData, Path], None]
    read: Callable[[Path], Sequence[Foreign | DistilledData]]
    recognises: Callable[[Path], bool]
    model: str = "convnet"
    scheme: str = "default"
    labels: str | None = None
    normalizations: Mapping[str, Normalization] = field(default_factory=dict)

    def lost(self, distilled: DistilledData) -> list[str]:
        """Parts of some data that the format cannot hold, in words."""
        found, rates = [], distilled.learning_rates
        if "soft labels" not in self.holds and distilled.soft_labels is not None:
            found.append("soft labels (hard ones are written)")
        if "batches" not in self.holds and len(distilled.batches) > 1:
            found.append(f"the order in {len(distilled.batches)} batches")
        if rates is not None and "rates" not in self.holds and ("rate" not in self.holds or only_rate(rates) is None):
            found.append(f"{len(rates)} learning rate{'s' if len(rates) > 1 else ''}")
        if "initial weights" not in self.holds and distilled.initial_weights is not None:
            found.append("the initial weights that the images belong to")
        if "provenance" not in self.holds:
            found.append("class names, normalisation and provenance")
        return found


def only_rate(rates: Float[Tensor, "t"] | None) -> Float[Tensor, ""] | None:
    """The learning rate, where all steps have the same."""
    return rates[0].clone() if rates is not None and bool((rates == rates[0]).all()) else None


def take_images(value: Any, what: str) -> Float[Tensor, "n c h w"]:
    """A tensor from a foreign file as images.

    Raises:
        DamagedFileError: it is something else.
    """
    tensor = _dense(value, what)
    require(tensor.is_floating_point() and tensor.dim() == 4, f"{what} are {_kind(tensor)}, not [N, C, H, W] of floats")
    require(tensor.numel() > 0, f"{what} are empty")
    return _finite(tensor, what)


def take_labels(value: Any, what: str) -> tuple[Int64[Tensor, "n"], Float[Tensor, "n k"] | None]:
    """A tensor from a foreign file as class indices and, if it has a number for each class, as soft labels.

    Raises:
        DamagedFileError: it is something else.
    """
    tensor = _dense(value, what)
    if tensor.is_floating_point() and tensor.dim() == 2 and tensor.shape[1] > 0:
        soft = _finite(tensor, what)
        return soft.argmax(1), soft
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    require(whole and tensor.dim() == 1, f"{what} are {_kind(tensor)}, not whole numbers [N] or floats [N, K]")
    return tensor.long(), None


def take_pair(
    images: Any, labels: Any, where: str = ""
) -> tuple[Float[Tensor, "n c h w"], Int64[Tensor, "n"], Float[Tensor, "n k"] | None]:
    """Images, as many class indices, and soft labels if there are any, from two tensors of a foreign file.

    Args:
        images: as for `take_images`.
        labels: as for `take_labels`.
        where: they are, for errors: such as ` of step 3`.

    Raises:
        DamagedFileError: they are something else.
    """
    found, (indices, soft) = take_images(images, f"the images{where}"), take_labels(labels, f"the labels{where}")
    require(len(found) == len(indices), f"there are {len(found)} images and {len(indices)} labels{where}")
    return found, indices, soft


def take_rate(value: Any, what: str) -> float:
    """A positive number from a foreign file, as a number or a tensor of one element.

    Raises:
        DamagedFileError: it is something else.
    """
    if isinstance(value, Tensor):
        tensor = _dense(value, what)
        require(tensor.numel() == 1 and not tensor.is_complex(), f"{what} is {_kind(tensor)}, not one number")
        value = float(tensor)
    require(isinstance(value, int | float) and 0 < value < 3e38, f"{what} is no positive number")
    return float(value)


def _dense(value: Any, what: str) -> Tensor:
    require(isinstance(value, Tensor), f"{what} is a {type(value).__name__}, not a tensor")
    assert isinstance(value, Tensor)
    plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    require(plain, f"{what} is no plain tensor")
    # A tensor may repeat its storage without end.
    held = value.untyped_storage().nbytes()
    require(value.numel() * value.element_size() <= held, f"{what} claims {value.numel():,} numbers, but holds fewer")
    return value.detach()


def _finite(tensor: Tensor, what: str) -> Tensor:
    single = tensor.float().contiguous()
    require(bool(single.isfinite().all()), f"{what} are not finite")
    return single


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def assemble(info: FormatInfo, foreign: Foreign, real: RealData, usage: Usage, recipe: str) -> DistilledData:
    """Foreign data as DistilledData for a dataset.

    Args:
        info: the format it comes from.
        foreign: what a file holds.
        real: the dataset that it belongs to.
        usage: what the file does not say.
        recipe: what to record as the command that made the result.

    Raises:
        RequestError: its classes, shape or normalisation are not the dataset's.
        DamagedFileError: it is not whole.
    """
    classes = usage.classes or foreign.classes
    if classes is not None:
        check_classes(classes, real)
    images, count = _normalized(info, foreign, real, usage), len(foreign.labels)
    in_range = count == 0 or (int(foreign.labels.min()) >= 0 and int(foreign.labels.max()) < real.num_classes)
    width = real.num_classes if foreign.soft_labels is None else foreign.soft_labels.shape[1]
    if not in_range or width != real.num_classes:
        highest = max(int(foreign.labels.max()) + 1, 0 if foreign.soft_labels is None else width)
        raise RequestError(f"the file's labels are of {highest} classes, but {real.name} has {real.num_classes}")
    soft, kind = _shares(info, foreign.soft_labels, usage.labels)
    batches = torch.arange(count).view(1, -1) if foreign.batches is None else foreign.batches
    rates, rate = foreign.learning_rates, usage.rate if foreign.rate is None else foreign.rate
    if rates is None and rate is not None:
        rates = torch.full((usage.epochs * len(batches),), rate)
    provenance = Provenance(
        dataset=real.name,
        classes=real.classes,
        normalization=real.normalization,
        model=usage.model,
        weights={"kind": "random-init", "scheme": usage.scheme},
        inner=own_steps(len(batches), 1 if rates is None else len(rates) // len(batches)),
        method={"name": "imported", "format": info.name, **kind},
        seed=0,
        recipe=recipe,
    )
    data = DistilledData(images, foreign.labels, batches, rates, provenance, soft_labels=soft)
    return parse_distilled(data.tensors(), {"datadistill": data.header()})


def _shares(
    info: FormatInfo, labels: Float[Tensor, "n k"] | None, asked: str | None
) -> tuple[Float[Tensor, "n k"] | None, dict[str, str]]:
    """Soft labels as the loss takes them, and what they were taken for where they could have been something else.

    Raises:
        RequestError: nobody says what they are.
    """
    if labels is None:
        return None, {}
    add_up = torch.allclose(labels.sum(1), torch.ones(len(labels)), atol=1e-3) and bool((labels >= -1e-3).all())
    kind = asked or ("shares" if add_up else info.labels)
    if kind is None:
        raise RequestError(
            f"the labels are numbers from {float(labels.min()):.3g} to {float(labels.max()):.3g} that do not add up to "
            "1: say with --labels logits that a softmax makes shares of them, or with --labels shares to take "
            "them as they are"
        )
    return (labels.softmax(1), {"labels": "logits"}) if kind == "logits" else (labels, {})


def _normalized(info: FormatInfo, foreign: Foreign, real: RealData, usage: Usage) -> Float[Tensor, "n c h w"]:
    """The images as the dataset's are normalised."""
    if foreign.images is None:
        assert foreign.pixels is not None
        height, width, channels = foreign.pixels.shape[1:]
        check_shape((channels, height, width), real)
        return real.normalization.apply(foreign.pixels)
    check_shape(foreign.images.shape[1:], real)
    if real.is_whitened:
        raise RequestError(
            f"images of format {info.name} do not say how they were whitened, and no other program has the matrix of "
            f"{real.name} here: leave out --zca"
        )
    theirs = usage.normalization or info.normalizations.get(real.name, real.normalization)
    if len(theirs.mean) != len(theirs.std) or len(theirs.mean) != real.in_channels:
        raise RequestError(
            f"{real.name} has {real.in_channels} channels, but {len(theirs.mean)} means and {len(theirs.std)} "
            "deviations were given"
        )
    if usage.renormalize:
        return normalized(theirs.invert(foreign.images), real.normalization)
    try:
        check_normalization(theirs, real)
    except RequestError as error:
        raise RequestError(f"{error}: add --renormalize to turn the images into the dataset's") from error
    return foreign.images


def normalized(pixels: Float[Tensor, "n c h w"], normalization: Normalization) -> Float[Tensor, "n c h w"]:
    """Images of pixels, which for learned ones may lie outside of [0, 1]."""
    mean, std = (torch.tensor(values).to(pixels)[:, None, None] for values in (normalization.mean, normalization.std))
    return (pixels - mean) / std


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when it is whole.

    Raises:
        DatadistillError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(path)
    except OSError as error:
        raise explain_os_error(error, f"write {path}") from error
    finally:
        rmtree(temporary, ignore_errors=True)

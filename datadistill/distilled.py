"""DistilledData: the one currency after distilling, and its file format."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from datadistill.data.compatibility import check_classes, check_normalization, check_shape, check_whitening
from datadistill.data.real import RealData
from datadistill.data.transforms import Normalization, Whitening
from datadistill.engine.functional import Weights
from datadistill.engine.losses import Labels
from datadistill.engine.unroll import InnerStep
from datadistill.utils.errors import DamagedFileError, RequestError, require
from datadistill.utils.files import is_file, read_tensors, tensors_file, write_atomically
from datadistill.utils.schema import from_json, read_header

FORMATS = (1, 2)
FILE_NAME = "distilled.safetensors"
_WEIGHT_PREFIX = "initial_weights."
_ZCA = ("transform.zca_mean", "transform.zca_matrix")
_LAYOUT = {
    "images": (torch.float32, 4),
    "labels": (torch.int64, 1),
    "batches": (torch.int64, 2),
    "learning_rates": (torch.float32, 1),
    "soft_labels": (torch.float32, 2),
    **{name: (torch.float32, dims) for dims, name in enumerate(_ZCA, 1)},
}
"""Type and number of dimensions of each tensor but initial weights."""

CONDENSATION = "dc"
"""The protocol of data without rates for each step, as `inner` names it: see `training.carried`."""


def is_format_2(inner: Mapping[str, Any]) -> bool:
    """Whether `inner` is a `TrainRecipe` by its fields, for which files have another format and the key `training`."""
    return "lr" in inner


@dataclass(frozen=True)
class Provenance:
    """Where distilled data comes from and how it is meant to be used; the file's JSON.

    Attributes:
        dataset: the real dataset's name.
        classes: class names, by index.
        normalization: how the real pixels in [0, 1] became what the network is fed.
        model: the network it was made for.
        weights: the kind of initial weights and the scheme they were drawn by.
        inner: how networks are trained on it: optimizer, steps, epochs, augment and loss of the inner loop; `protocol`
            dc with its settings; or any `TrainRecipe`. `training.carried` reads all three.
        method: name and hyper-parameters.
        seed: of the run.
        versions: of the software.
        cost: seconds, outer steps, peak bytes and device.
        scores: what was measured, how, and on how many networks.
        recipe: the command that made it.
    """

    dataset: str
    classes: tuple[str, ...]
    normalization: Normalization
    model: str
    weights: dict[str, Any]
    inner: dict[str, Any]
    method: dict[str, Any]
    seed: int
    versions: dict[str, str] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    scores: list[dict[str, Any]] = field(default_factory=list)
    recipe: str = ""

    @property
    def batch_norm(self) -> str:
        """What layers with running statistics do in networks trained on it, as `network_for` takes it."""
        return str(self.inner.get("batch_norm", "auto"))


@dataclass(frozen=True, eq=False)
class DistilledData:
    """Synthetic images with labels, batches, learning rates and provenance.

    Attributes:
        images: exactly what the network is fed (after normalisation).
        labels: class indices.
        batches: which images each step uses, in order; S steps of B images.
        learning_rates: one per gradient step; None when the protocol sets its own. T = S x epochs, and step t
            uses batch t mod S. Data made for protocol `dc` may have one, for all steps.
        provenance: where it comes from.
        initial_weights: of the one network it was made for, with fixed-init and fixed-pretrained.
        soft_labels: the targets as the loss uses them, where labels are not hard; free numbers that need not add
            up to 1. `labels` is then the class that each favours.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, "n"]
    batches: Int64[Tensor, "s b"]
    learning_rates: Float[Tensor, "t"] | None
    provenance: Provenance
    initial_weights: Weights | None = None
    soft_labels: Float[Tensor, "n k"] | None = None

    @property
    def ipc(self) -> float:
        """Images per class."""
        return len(self.labels) / len(self.provenance.classes)

    @property
    def targets(self) -> Labels:
        """Targets of the loss: the soft labels if there are any, else the class indices."""
        return self.labels if self.soft_labels is None else self.soft_labels

    @property
    def is_condensed(self) -> bool:
        """Whether it was made to be trained on by protocol `dc` instead of by steps of its own."""
        return self.provenance.inner.get("protocol") == CONDENSATION

    def noted(self, **facts: Any) -> "DistilledData":
        """The same data with other facts in its provenance, by the names of its attributes."""
        return replace(self, provenance=replace(self.provenance, **facts))

    def inner_steps(self) -> list[InnerStep]:
        """The T gradient steps that the learned rates belong to.

        Raises:
            RequestError: this data has no learning rates of its own.
        """
        if self.is_condensed or self.learning_rates is None:
            raise RequestError(
                "this distilled data has no steps with learning rates of their own: it is trained on by protocol dc"
            )
        batches = [(self.images[chosen], self.targets[chosen]) for chosen in self.batches]
        numbers = [t % len(batches) for t in range(len(self.learning_rates))]
        return [InnerStep(*batches[n], rate, n) for n, rate in zip(numbers, self.learning_rates, strict=True)]

    def to(self, device: torch.device) -> "DistilledData":
        """The same data on a device."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        weights = self.initial_weights
        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            batches=self.batches.to(device),
            learning_rates=moved(self.learning_rates),
            initial_weights=weights and {name: weight.to(device) for name, weight in weights.items()},
            soft_labels=moved(self.soft_labels),
        )

    def as_dataset(self) -> TensorDataset:
        """Pairs (image [C, H, W], label) for a `torch.utils.data.DataLoader`; soft labels are [K]."""
        return TensorDataset(self.images, self.targets)

    def as_loader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The batches of one epoch, (images, labels), in the order in which the learning rates take them."""
        return DataLoader(self.as_dataset(), batch_sampler=self.batches.tolist())

    def as_arrays(self) -> dict[str, np.ndarray]:
        """All tensors as NumPy arrays, by the names they have in a file."""
        return {name: tensor.detach().cpu().numpy() for name, tensor in self.tensors().items()}

    def pixels(self) -> Float[Tensor, "n c h w"]:
        """The images before normalisation; learned ones may leave [0, 1]."""
        return self.provenance.normalization.invert(self.images)

    def check_matches(self, real: RealData) -> None:
        """Refuse to judge this data on a dataset of other classes, shape, normalisation or whitening.

        Raises:
            RequestError: naming what differs.
        """
        check_classes(self.provenance.classes, real)
        check_shape(self.images.shape[1:], real)
        check_normalization(self.provenance.normalization, real)
        check_whitening(self.provenance.normalization.zca, real)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically (layout: docs/file-format.md)."""
        write_atomically(Path(path), self.as_file())

    def as_file(self) -> bytes:
        """The content of that file."""
        return tensors_file(self.tensors(), {"datadistill": self.header()})

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the provenance, by the names it has in a file."""
        tensors = {"images": self.images, "labels": self.labels, "batches": self.batches}
        if self.learning_rates is not None:
            tensors["learning_rates"] = self.learning_rates
        if self.soft_labels is not None:
            tensors["soft_labels"] = self.soft_labels
        zca = self.provenance.normalization.zca
        if zca is not None:
            tensors |= dict(zip(_ZCA, (zca.mean, zca.matrix), strict=True))
        return tensors | {_WEIGHT_PREFIX + name: weight for name, weight in (self.initial_weights or {}).items()}

    def header(self) -> str:
        """The provenance as a file's JSON."""
        normalization = self.provenance.normalization
        plain = replace(self.provenance, normalization=normalization.by_channel)
        known = {"format": 1, **asdict(plain), "normalization": normalization.known()}
        if is_format_2(self.provenance.inner):
            known |= {"format": 2, "training": known.pop("inner")}
        return json.dumps(known, allow_nan=False)


def file_of(path: str | Path) -> Path:
    """The file of distilled data: itself, or the one in a run or gallery folder."""
    return Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)


def load_distilled(path: str | Path) -> DistilledData:
    """Read distilled data from its file, or from a run or gallery folder that holds one.

    Raises:
        RequestError: there is no such file.
        DamagedFileError: the file is damaged or breaks the format; the sentence says where.
    """
    file = file_of(path)
    if not is_file(file):
        raise RequestError(f"no distilled data at {path}: give a .safetensors file, or a folder with {FILE_NAME}")
    tensors, metadata = read_tensors(file)
    try:
        return parse_distilled(tensors, metadata)
    except DamagedFileError as error:
        raise DamagedFileError(f"{file} is not distilled data of format 1 or 2: {error}") from error


def parse_distilled(tensors: dict[str, Tensor], metadata: dict[str, str]) -> DistilledData:
    """Distilled data from the tensors and the metadata of a file.

    Raises:
        DamagedFileError: they break the format.
    """
    header = read_header(metadata, "datadistill", *FORMATS)
    is_recipe = "training" in header and "inner" not in header
    read_header(metadata, "datadistill", 2 if is_recipe else 1)  # refuses one format with the spelling of the other
    header |= {"inner": header["training"]} if is_recipe else {}
    provenance = _parse_provenance(header)
    require(is_format_2(provenance.inner) or not is_recipe, "'lr' is missing from its training")
    for name in ("images", "labels", "batches"):
        require(name in tensors, f"the tensor '{name}' is missing")
    for name, tensor in tensors.items():
        dtype, dims = (torch.float32, tensor.dim()) if name.startswith(_WEIGHT_PREFIX) else _LAYOUT.get(name, (None, 0))
        require(dtype is not None, f"the tensor '{name}' is unknown")
        require(tensor.dtype == dtype, f"'{name}' is {tensor.dtype}, not {dtype}")
        require(tensor.dim() == dims, f"'{name}' has {tensor.dim()} dimensions, not {dims}")
        require(dtype != torch.float32 or bool(tensor.isfinite().all()), f"'{name}' is not finite")
    zca = _parse_whitening(tensors, header["normalization"].get("zca", False))
    weights = {n.removeprefix(_WEIGHT_PREFIX): tensor for n, tensor in tensors.items() if n.startswith(_WEIGHT_PREFIX)}
    data = DistilledData(
        images=tensors["images"],
        labels=tensors["labels"],
        batches=tensors["batches"],
        learning_rates=tensors.get("learning_rates"),
        soft_labels=tensors.get("soft_labels"),
        provenance=replace(provenance, normalization=replace(provenance.normalization, zca=zca)),
        initial_weights=weights or None,
    )
    _check(data)
    return data


def _parse_provenance(header: dict[str, Any]) -> Provenance:
    """The provenance, without whitening; what else a file says is not read."""
    known = {entry.name: header[entry.name] for entry in fields(Provenance) if entry.name in header}
    if isinstance(known.get("normalization"), dict):
        known["normalization"] = {name: value for name, value in known["normalization"].items() if name != "zca"}
    provenance = from_json(Provenance, known, optional=())
    require(len(provenance.classes) > 0, "it has no classes")
    require(provenance.normalization.is_whole, "its normalisation is malformed")
    return provenance


def _parse_whitening(tensors: dict[str, Tensor], is_told: Any) -> Whitening | None:
    """ZCA whitening of the images, where the metadata says that there is one."""
    require(isinstance(is_told, bool), "'zca' in its metadata is neither true nor false")
    for name in _ZCA:
        has = "is missing" if is_told else "is there, but its metadata does not say that its images are whitened"
        require((name in tensors) == is_told, f"the tensor '{name}' {has}")
    if not is_told:
        return None
    (mean, matrix), numbers = (tensors[name] for name in _ZCA), tensors["images"].shape[1:].numel()
    require(mean.shape == (numbers,), f"'{_ZCA[0]}' has {len(mean)} numbers, but its images have {numbers}")
    require(matrix.shape == (numbers, numbers), f"'{_ZCA[1]}' is {list(matrix.shape)}, not {[numbers, numbers]}")
    return Whitening(mean, matrix)


def _check(data: DistilledData) -> None:
    count, num_classes = len(data.images), len(data.provenance.classes)
    require(data.images.numel() > 0, "it holds no images")
    require(len(data.labels) == count, f"{count} images but {len(data.labels)} labels")
    in_range = bool(((data.labels >= 0) & (data.labels < num_classes)).all())
    require(in_range, f"a label is outside its {num_classes} classes")
    require(data.batches.numel() > 0, "it has no batches")
    require(bool(((data.batches >= 0) & (data.batches < count)).all()), "a batch names an image that is not there")
    channels = len(data.provenance.normalization.mean)
    require(channels == data.images.shape[1], f"{channels} normalisation channels for {data.images.shape[1]}")
    if data.learning_rates is not None:
        require(len(data.learning_rates) > 0, "it has no learning rates")
        whole = is_format_2(data.provenance.inner) or len(data.learning_rates) % len(data.batches) == 0
        require(whole, "its learning rates are not whole epochs")
        require(bool((data.learning_rates > 0).all()), "a learning rate is not positive")
    if data.soft_labels is not None:
        require(data.soft_labels.shape == (count, num_classes), "its soft labels have the wrong shape")

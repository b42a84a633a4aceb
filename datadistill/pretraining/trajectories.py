"""Expert trajectories: the weights of networks at the start and after each epoch of ordinary training.

A folder holds one file for each expert, and one with the facts. Weights lie there in half the bits that they are
computed with (`docs/method-mtt.md` says what that changes), and only those of the epoch that is asked for are read.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from datadistill.data.compatibility import check_classes, check_normalization, check_shape, check_whitened
from datadistill.data.real import RealData
from datadistill.data.transforms import Normalization
from datadistill.engine.functional import Network, Weights
from datadistill.models import same_model
from datadistill.pretraining.pool import stacked_in_half
from datadistill.training.train import Training
from datadistill.utils.errors import DamagedFileError, RequestError, explain_os_error
from datadistill.utils.files import digest_of, read_json, write_json, write_tensors

FORMAT = 1
FACTS_NAME = "trajectories.json"
_KEY = "datadistill-trajectory"
MEASURED = ("accuracies", "seconds", "versions", "recipe")
"""Facts that say nothing of what the weights are: the same experts made again have the same digest."""
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, IndexError)


@dataclass(frozen=True)
class TrajectoryFacts:
    """What a folder of trajectories holds and how it was made; its JSON.

    Attributes:
        dataset: what the experts were trained on: its training split less the held-out slice.
        classes: class names, by index.
        normalization: by channel, how the real pixels in [0, 1] became what the experts were fed.
        image_shape: channels, height and width.
        model: the architecture's name.
        scheme: how the weights before training were drawn.
        batch_norm: what layers with running statistics did, as for `engine.make_network`.
        training: how they were trained.
        seed: of all experts.
        digests: of each expert.
        accuracies: of each expert on the held-out slice at the end, with the weights as they are in the file.
        seconds: of training, added up over experts.
        versions: of the software.
        recipe: the command that made it.
        zca: whether the images were whitened then.
    """

    dataset: str
    classes: tuple[str, ...]
    normalization: Normalization
    image_shape: tuple[int, ...]
    model: str
    scheme: str
    batch_norm: str
    training: Training
    seed: int
    digests: tuple[str, ...] = ()
    accuracies: tuple[float, ...] = ()
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    recipe: str = ""
    zca: bool = False

    def known(self) -> dict[str, Any]:
        """JSON-ready."""
        known = asdict(self) | {"training": self.training.known(), "normalization": self.normalization.known()}
        # Beside mean and deviation, and only where it is so: files from before there was a choice keep their digest.
        if known.pop("zca"):
            known["normalization"]["zca"] = True
        return known


@dataclass(frozen=True)
class ExpertFile:
    """One expert's file, opened anew for each reading.

    Attributes:
        path: of the file.
        digests: of the weights of each epoch, from before the first.
        accuracy: on the held-out slice, at the end.
        seconds: of training.
    """

    path: Path
    digests: tuple[str, ...]
    accuracy: float
    seconds: float

    @property
    def digest(self) -> str:
        """Of all epochs."""
        return hashlib.sha256(" ".join(self.digests).encode()).hexdigest()

    def weights(self, epoch: int) -> Weights:
        """The weights after so many epochs, in float32 on the CPU. Nothing else of the file is read.

        Raises:
            DamagedFileError: they are not those that were written.
        """
        halves = _open(self.path, lambda file: {name: file.get_slice(name)[epoch] for name in file.keys()})  # noqa: SIM118
        if digest_of(halves) != self.digests[epoch]:
            raise DamagedFileError(f"{self.path} is damaged: the checksum of epoch {epoch} differs")
        if not all(bool(half.isfinite().all()) for half in halves.values()):
            raise DamagedFileError(f"{self.path} is malformed: the weights of epoch {epoch} are not finite")
        return {name: half.float() for name, half in halves.items()}


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Experts of one architecture.

    Attributes:
        facts: what they are and how they were made.
        experts: their files.
        shapes: of each weight.
        folder: where they lie.
    """

    facts: TrajectoryFacts
    experts: tuple[ExpertFile, ...]
    shapes: dict[str, tuple[int, ...]]
    folder: Path

    def __len__(self) -> int:
        return len(self.experts)

    @property
    def epochs(self) -> int:
        """How many epochs each expert was trained for."""
        return self.facts.training.epochs

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights and of the facts that are not measurements, hexadecimal."""
        known = {name: value for name, value in self.facts.known().items() if name not in MEASURED}
        return digest_of({}, json.dumps(known, sort_keys=True))

    def check_fits(self, network: Network, model: str, real: RealData) -> None:
        """Refuse to match another network, or one for other images.

        Raises:
            RequestError: naming what differs.
        """
        mine, what = self.facts, "the trajectories'"
        check_shape(mine.image_shape, real, f"{what} images")
        check_classes(mine.classes, real, what)
        check_normalization(mine.normalization, real, what)
        check_whitened(mine.zca, real, f"{what} images")
        if not same_model(mine.model, model):
            raise RequestError(
                f"the trajectories are those of {mine.model}, but the network here is {model}: to match them all the "
                f"same, add --matched-on {mine.model}"
            )
        if any(getattr(layer, "track_running_stats", False) for layer in network.module.modules()):
            raise RequestError("trajectories hold no running statistics: choose --batch-norm batch, also for experts")
        expected = {name: tuple(weight.shape) for name, weight in network.module.named_parameters()}
        if expected != self.shapes:
            raise RequestError(f"the trajectories do not fit {model}: they are of another network of that name")


def write_expert(path: Path, epochs: Sequence[Weights], accuracy: float, seconds: float) -> None:
    """Write one expert's file, atomically: each weight as [epochs + 1, ...]."""
    stacked = stacked_in_half(epochs)
    digests = [digest_of({name: stack[t] for name, stack in stacked.items()}) for t in range(len(epochs))]
    known = {"format": FORMAT, "digests": digests, "accuracy": accuracy, "seconds": seconds}
    write_tensors(path, stacked, {_KEY: json.dumps(known, allow_nan=False)})


def read_expert(path: Path, epochs: int) -> tuple[ExpertFile, dict[str, tuple[int, ...]]]:
    """An expert's file and the shape of each weight; the weights themselves are not read.

    Raises:
        DatadistillError: it is not there, damaged, or of another length.
    """

    def look(file: Any) -> tuple[dict[str, str], dict[str, tuple[list[int], str]]]:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return file.metadata() or {}, {name: (s.get_shape(), s.get_dtype()) for name, s in slices.items()}

    metadata, stacks = _open(path, look)
    try:
        header = json.loads(metadata[_KEY])
        _require(header["format"] == FORMAT, "it has another format")
        digests, accuracy, seconds = header["digests"], float(header["accuracy"]), float(header["seconds"])
        _require(len(digests) == epochs + 1, f"it does not hold {epochs} epochs")
        _require(all(isinstance(digest, str) for digest in digests), "a checksum is malformed")
        _require(0 <= accuracy <= 1 and math.isfinite(seconds), "its accuracy or time is malformed")
        _require(len(stacks) > 0, "it holds no weights")
        for name, (shape, dtype) in stacks.items():
            _require(dtype in ("F16", "BF16"), f"'{name}' is {dtype}")
            _require(shape[:1] == [epochs + 1], f"'{name}' does not hold {epochs} epochs")
    except (DamagedFileError, *_MALFORMED) as error:
        raise DamagedFileError(f"{path} is not an expert's trajectory: {_reason(error)}") from error
    shapes = {name: tuple(shape[1:]) for name, (shape, _) in stacks.items()}
    return ExpertFile(path, tuple(digests), accuracy, seconds), shapes


def expert_path(folder: Path, index: int) -> Path:
    """Where an expert lies."""
    return folder / f"expert-{index:05d}.safetensors"


def save_facts(folder: Path, facts: TrajectoryFacts) -> None:
    """Write what a folder holds; it is finished with that."""
    write_json(folder / FACTS_NAME, {"format": FORMAT, **facts.known()})


def load_trajectories(folder: str | Path) -> Trajectories:
    """Open a folder of trajectories; weights are read, and their checksums compared, when they are asked for.

    Raises:
        RequestError: there is no such folder, or it is not finished.
        DamagedFileError: a file is damaged, or not the one that belongs there; the sentence says which.
    """
    folder = Path(folder)
    if not (folder / FACTS_NAME).is_file():
        raise RequestError(
            f"no expert trajectories in {folder}: make them with `datadistill pretrain --trajectories --out {folder}`"
        )
    document = read_json(folder / FACTS_NAME)
    try:
        facts = _parse(document)
    except (DamagedFileError, *_MALFORMED) as error:
        raise DamagedFileError(f"{folder / FACTS_NAME} is not of format {FORMAT}: {_reason(error)}") from error
    found = [read_expert(expert_path(folder, index), facts.training.epochs) for index in range(len(facts.digests))]
    shapes = found[0][1]
    for (expert, own), digest in zip(found, facts.digests, strict=True):
        if expert.digest != digest or own != shapes:
            raise DamagedFileError(f"{expert.path} is damaged or of other trajectories: its checksums differ")
    return Trajectories(facts, tuple(expert for expert, _ in found), shapes, folder)


def _open(path: Path, look: Any) -> Any:
    """What a function finds in a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return look(file)
    except OSError as error:
        raise explain_os_error(error, f"read {path}") from error
    except (SafetensorError, RuntimeError, *_MALFORMED) as error:
        raise DamagedFileError(f"{path} is damaged or no safetensors file: {_reason(error)}") from error


def _parse(header: Any) -> TrajectoryFacts:
    _require(isinstance(header, dict), "it is not a JSON object")
    _require(header.pop("format", None) == FORMAT, "it has another format")
    kinds: dict[str, type | tuple[type, ...]] = {
        **dict.fromkeys(("dataset", "model", "scheme", "batch_norm", "recipe"), str),
        **dict.fromkeys(("classes", "image_shape", "digests", "accuracies"), list),
        **dict.fromkeys(("normalization", "training", "versions"), dict),
        **{"seed": int, "seconds": (int, float), "zca": bool},
    }
    header["zca"] = header["normalization"].get("zca", False)
    for entry in fields(TrajectoryFacts):
        _require(isinstance(header.get(entry.name), kinds[entry.name]), f"'{entry.name}' is missing or malformed")
    _require(len(header["classes"]) > 0, "it has no classes")
    texts = header["classes"] + header["digests"]
    _require(all(isinstance(text, str) for text in texts), "a class name or checksum is not text")
    sizes = header["image_shape"]
    _require(len(sizes) == 3 and all(isinstance(s, int) and s > 0 for s in sizes), "its image shape is malformed")
    shares = [float(share) for share in header["accuracies"]]
    _require(all(0 <= share <= 1 for share in shares), "an accuracy is not between 0 and 1")
    _require(0 < len(header["digests"]) == len(shares), "it has more or fewer accuracies than experts")
    mean, std = (tuple(map(float, header["normalization"][key])) for key in ("mean", "std"))
    whole = len(mean) == len(std) == sizes[0] and all(map(math.isfinite, mean + std)) and min(std) > 0
    _require(whole, "its normalisation is malformed")
    for name in ("classes", "image_shape", "digests", "accuracies"):
        header[name] = tuple(header[name])
    known = header | {"normalization": Normalization(mean, std), "training": Training(**header["training"])}
    return TrajectoryFacts(**known)


def _reason(error: BaseException) -> str:
    if isinstance(error, DamagedFileError):
        return str(error)
    return f"its contents are malformed ({repr(error).splitlines()[0][:200]})"


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise DamagedFileError(otherwise)

"""Expert trajectories: the weights of networks at the start and after each epoch of ordinary training.

A folder holds one file for each expert, and one with the facts. Weights lie there in half the bits that they are
computed with (`docs/method-mtt.md` says what that changes), and only those of the epoch that is asked for are read.
"""

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datadistill.data.compatibility import check_classes, check_normalization, check_shape, check_whitened
from datadistill.data.real import RealData
from datadistill.engine.functional import Network, Weights
from datadistill.models import same_model
from datadistill.pretraining.facts import NetworkFacts, check_weights, parse_facts
from datadistill.pretraining.pool import stacked_in_half
from datadistill.utils.errors import DamagedFileError, RequestError, require
from datadistill.utils.files import digest_of, is_file, look_into, read_json, write_json, write_tensors
from datadistill.utils.schema import from_json, of_format, read_header

FORMAT = 1
FACTS_NAME = "trajectories.json"
_KEY = "datadistill-trajectory"


@dataclass(frozen=True, kw_only=True)
class TrajectoryFacts(NetworkFacts):
    """Metadata of a folder of trajectories; its JSON.

    Attributes:
        digests: of each expert.
    """

    digests: tuple[str, ...] = ()

    MEASURED = ("accuracies", "seconds", "versions", "recipe")
    RESULTS = ("digests", *MEASURED)
    COUNT = "experts"


@dataclass(frozen=True)
class ExpertFacts:
    """Metadata of one expert's file.

    Attributes:
        digests: of the weights of each epoch, from before the first.
        accuracy: on the held-out slice, at the end.
        seconds: of training.
    """

    digests: tuple[str, ...]
    accuracy: float
    seconds: float

    @property
    def digest(self) -> str:
        """Of all epochs."""
        return hashlib.sha256(" ".join(self.digests).encode(errors="surrogatepass")).hexdigest()


@dataclass(frozen=True)
class ExpertFile:
    """One expert's file, opened anew for each reading.

    Attributes:
        path: of the file.
        facts: what it says of the expert.
        shapes: of each weight.
    """

    path: Path
    facts: ExpertFacts
    shapes: dict[str, tuple[int, ...]]

    def weights(self, epoch: int) -> Weights:
        """The weights after so many epochs, in float32 on the CPU. Nothing else of the file is read.

        Raises:
            DamagedFileError: they are not those that were written.
        """
        halves = look_into(self.path, lambda file: {name: file.get_slice(name)[epoch] for name in file.keys()})  # noqa: SIM118
        if digest_of(halves) != self.facts.digests[epoch]:
            raise DamagedFileError(f"{self.path} is damaged: the checksum of epoch {epoch} differs")
        if not all(bool(half.isfinite().all()) for half in halves.values()):
            raise DamagedFileError(f"{self.path} is malformed: the weights of epoch {epoch} are not finite")
        return {name: half.float() for name, half in halves.items()}

    def check(self) -> None:
        """Read the weights of all epochs; errors are those of `weights`."""
        for epoch in range(len(self.facts.digests)):
            self.weights(epoch)


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Experts of one architecture.

    Attributes:
        facts: what they are and how they were made.
        experts: their files.
        folder: where they lie.
    """

    facts: TrajectoryFacts
    experts: tuple[ExpertFile, ...]
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
        return digest_of({}, self.facts.digested())

    def check_fits(self, network: Network, model: str, real: RealData) -> None:
        """Refuse to match another network, or one for other images.

        Raises:
            RequestError: naming what differs.
        """
        mine, whose = self.facts, "the trajectories'"
        check_shape(mine.image_shape, real, f"{whose} images")
        check_classes(mine.classes, real, whose)
        check_normalization(mine.normalization, real, whose)
        check_whitened(mine.zca, real, f"{whose} images")
        if not same_model(mine.model, model):
            raise RequestError(
                f"the trajectories are those of {mine.model}, but the network here is {model}: to match them all the "
                f"same, add --matched-on {shlex.quote(mine.model)}"
            )
        check_weights(self.experts[0].shapes, network, model, whose)


def write_expert(path: Path, epochs: Sequence[Weights], accuracy: float, seconds: float) -> None:
    """Write one expert's file, atomically: each weight as [epochs + 1, ...]."""
    stacked = stacked_in_half(epochs)
    digests = (digest_of({name: stack[t] for name, stack in stacked.items()}) for t in range(len(epochs)))
    header = {"format": FORMAT, **asdict(ExpertFacts(tuple(digests), accuracy, seconds))}
    write_tensors(path, stacked, {_KEY: json.dumps(header, allow_nan=False)})


def read_expert(path: Path, epochs: int) -> ExpertFile:
    """An expert's file; the weights themselves are not read.

    Raises:
        DatadistillError: it is not there, damaged, or of another length.
    """

    def look(file: Any) -> tuple[dict[str, str], dict[str, tuple[list[int], str]]]:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return file.metadata() or {}, {name: (s.get_shape(), s.get_dtype()) for name, s in slices.items()}

    metadata, stacks = look_into(path, look)
    try:
        facts = from_json(ExpertFacts, read_header(metadata, _KEY, FORMAT))
        require(len(facts.digests) == epochs + 1, f"it does not hold {epochs} epochs")
        require(0 <= facts.accuracy <= 1, "its accuracy is not between 0 and 1")
        require(len(stacks) > 0, "it holds no weights")
        for name, (shape, dtype) in stacks.items():
            require(dtype in ("F16", "BF16"), f"'{name}' is {dtype}")
            require(shape[:1] == [epochs + 1], f"'{name}' does not hold {epochs} epochs")
    except DamagedFileError as error:
        raise DamagedFileError(f"{path} is not an expert's trajectory: {error}") from error
    return ExpertFile(path, facts, {name: tuple(shape[1:]) for name, (shape, _) in stacks.items()})


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
    if not is_file(folder / FACTS_NAME):
        command = shlex.join(["datadistill", "pretrain", "--trajectories", "--out", str(folder)])
        raise RequestError(f"no expert trajectories in {folder}: make them with `{command}`")
    document = read_json(folder / FACTS_NAME)
    try:
        facts = parse_facts(TrajectoryFacts, of_format(document, FORMAT))
        require(0 < len(facts.digests) == len(facts.accuracies), "it has more or fewer accuracies than experts")
    except DamagedFileError as error:
        raise DamagedFileError(f"{folder / FACTS_NAME} is not of format {FORMAT}: {error}") from error
    experts = [read_expert(expert_path(folder, index), facts.training.epochs) for index in range(len(facts.digests))]
    for expert, digest in zip(experts, facts.digests, strict=True):
        if expert.facts.digest != digest or expert.shapes != experts[0].shapes:
            raise DamagedFileError(f"{expert.path} is damaged or of other trajectories: its checksums differ")
    return Trajectories(facts, tuple(experts), folder)

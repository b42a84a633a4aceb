"""The settings of a run: everything needed to run it again, as `config.json` holds it."""

import json
import types
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args, get_origin, get_type_hints

from datadistill.data.options import Options
from datadistill.data.real import Source
from datadistill.engine.config import Engine
from datadistill.models import same_model
from datadistill.utils.errors import DamagedFileError, RequestError

FORMAT = 1
_NEW = (
    *("engine", "batch_norm", "attack", "pool", "pool_digest", "source", "trajectories", "trajectories_digest", "zca"),
    "kernels",
)
"""Settings that the first files of this format do not have."""
_ONLY_CHANGES_BITS = ("versions", "threads", "recipe", "pool", "trajectories", "kernels")
"""What two parts of one run may differ in. Pools and trajectories may have been moved: their digests tell them."""


@dataclass(frozen=True)
class Settings:
    """Everything needed to run again.

    Attributes:
        dataset: the dataset's name.
        model: the network's name.
        weights: the kind of initial weights.
        scheme: how they are drawn.
        ipc: images per class, or one number for each.
        seed: of all randomness.
        method: name and hyper-parameters.
        outer: the outer loop's hyper-parameters.
        iterations: outer steps, or None.
        budget: seconds, or None.
        device: cpu, cuda or mps.
        versions: of the software that started the run.
        threads: of the processor that it ran on.
        recipe: the command that started it.
        engine: how hypergradients are computed.
        batch_norm: what layers with running statistics do.
        attack: the class that is to be taken for another, and that other, or None.
        pool: the file that the pretrained kinds of initial weights come from.
        pool_digest: of that file's contents.
        trajectories: the folder of the experts that are matched.
        trajectories_digest: of its contents.
        zca: whether the data was whitened.
        kernels: our operations that took the place of PyTorch's; None in files from before that was recorded.
        source: of data of one's own: what it was called, how it was read, and what was in it.
    """

    dataset: str
    model: str
    weights: str
    scheme: str
    ipc: int | float | list[int]
    seed: int
    method: dict[str, Any]
    outer: dict[str, Any]
    iterations: int | None
    budget: float | None
    device: str
    versions: dict[str, str] = field(default_factory=dict)
    threads: int = 1
    recipe: str = ""
    engine: dict[str, Any] = field(default_factory=dict)
    batch_norm: str = "refused"
    attack: list[str] | None = None
    pool: str | None = None
    pool_digest: str | None = None
    trajectories: str | None = None
    trajectories_digest: str | None = None
    zca: bool = False
    source: Source | None = None
    kernels: list[str] | None = None

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"format": FORMAT, **asdict(self)}

    def difference(self, other: "Settings") -> str | None:
        """The first setting in which two runs differ, in words, or None; what only changes bits does not count."""
        if self.source is not None and other.source is not None:
            if self.source.digest != other.source.digest:
                return f"the images of {self.source.given} have changed since it was started"
            # The same images may have been moved, or come from another kind of file.
            other = replace(other, dataset=self.dataset, source=self.source)
        there, here = (json.loads(json.dumps(settings.as_json())) for settings in (self, other))
        if same_model(self.model, other.model):
            here["model"] = there["model"]
        for name in there:
            if name not in _ONLY_CHANGES_BITS and there[name] != here[name]:
                return f"{name} is {_brief(there[name], here[name])} there and {_brief(here[name], there[name])} here"
        return None


def parse_settings(document: Any) -> Settings:
    """Settings from JSON.

    Raises:
        DamagedFileError: something is missing, unknown or of the wrong type.
    """
    kinds = get_type_hints(Settings)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DamagedFileError(f"it has no format {FORMAT}")
    values = {name: value for name, value in document.items() if name != "format"}
    for name, kind in kinds.items():
        if name in _NEW and name not in values:
            continue
        if name == "source" and values[name] is not None:
            values[name] = _parse_source(values[name])
        if name not in values or not isinstance(values[name], _classes(kind)):
            raise DamagedFileError(f"'{name}' is missing or of the wrong type")
    if isinstance(values["ipc"], list) and not all(type(one) is int for one in values["ipc"]):
        raise DamagedFileError("'ipc' is not made of whole numbers")
    if not all(isinstance(name, str) for name in values.get("kernels") or ()):
        raise DamagedFileError("'kernels' is not made of names")
    if values.keys() - kinds:
        raise DamagedFileError(f"'{min(values.keys() - kinds)}' is unknown")
    # A file without an engine is from before there was a choice; what is missing is as it is by default.
    values["engine"] = asdict(Engine()) | values.get("engine", {})
    values["engine"].pop("window", None)  # it was a choice of storage before it was an option of method dd
    if not isinstance(values["method"].get("name"), str):
        raise DamagedFileError("the method has no name")
    return Settings(**values)


def _parse_source(document: Any) -> Source:
    try:
        source = Source(**{**document, "options": Options(**document["options"])})
    except (TypeError, KeyError, RequestError) as error:
        raise DamagedFileError("'source' is of the wrong type") from error
    if not all(isinstance(text, str) for text in (source.given, source.place, source.digest)):
        raise DamagedFileError("'source' is of the wrong type")
    return source


def _classes(hint: Any) -> tuple[type, ...]:
    """The classes that a JSON value of this type may have."""
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    classes = tuple(get_origin(option) or option for option in options)
    return (*classes, int) if float in classes else classes


def _brief(value: Any, other: Any) -> Any:
    if isinstance(value, dict) and isinstance(other, dict):
        return {key: value[key] for key in value if value[key] != other.get(key)}
    return value

"""Metadata of trained networks: the JSON of pools and of trajectories."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TypeVar

from datadistill.data.transforms import Normalization
from datadistill.engine.functional import Network
from datadistill.training.recipe import TrainRecipe, by_field
from datadistill.utils.errors import RequestError, require
from datadistill.utils.schema import from_json, to_json


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """Metadata of networks: what they are and how they were made.

    Attributes:
        dataset: what the networks were trained on: its training split less the held-out slice.
        classes: class names, by index.
        normalization: by channel, how the real pixels in [0, 1] became what the networks were fed.
        image_shape: channels, height and width.
        model: the architecture's name.
        scheme: how the weights before training were drawn.
        batch_norm: what layers with running statistics did, as for `engine.make_network`.
        training: how they were trained.
        seed: of all networks.
        accuracies: of each network on the held-out slice at the end, with the weights as they are in the file.
        seconds: of training, added up over networks.
        versions: of the software.
        recipe: the command that made them.
        zca: whether the images were whitened then.
    """

    dataset: str
    classes: tuple[str, ...]
    normalization: Normalization
    image_shape: tuple[int, ...]
    model: str
    scheme: str
    batch_norm: str
    training: TrainRecipe
    seed: int
    accuracies: tuple[float, ...] = ()
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    recipe: str = ""
    zca: bool = False

    MEASURED: ClassVar[tuple[str, ...]]
    """Facts that say nothing of what the networks are: the same networks made again have the same digest."""
    RESULTS: ClassVar[tuple[str, ...]]
    """Facts that are not asked for; the last ones in a file."""
    COUNT: ClassVar[str]
    """What the number of networks is called."""

    def known(self) -> dict[str, Any]:
        """JSON-ready."""
        known = asdict(self) | {"training": self.training.known(), "normalization": self.normalization.known()}
        # Beside mean and deviation, and only where it is so: files from before there was a choice keep their digest.
        if known.pop("zca"):
            known["normalization"]["zca"] = True
        results = {name: known.pop(name) for name in self.RESULTS}
        return known | results

    def asked(self) -> dict[str, Any]:
        """What was asked for, as JSON gives it back."""
        asked = {name: value for name, value in self.known().items() if name not in self.RESULTS}
        return dict(to_json({**asked, self.COUNT: len(self.accuracies)}))

    def digested(self) -> str:
        """Content of a digest beside weights: all metadata that is not measured, as JSON."""
        return json.dumps({n: value for n, value in self.known().items() if n not in self.MEASURED}, sort_keys=True)


Facts = TypeVar("Facts", bound=NetworkFacts)


def parse_facts(kind: type[Facts], header: dict[str, Any], optional: Collection[str] = ()) -> Facts:
    """Metadata from the JSON that `known` wrote.

    `optional` is what the header may lack.

    Raises:
        DamagedFileError: it breaks the format; the sentence says where.
    """
    normalization = header.get("normalization")
    if isinstance(normalization, dict):
        by_channel = {name: value for name, value in normalization.items() if name != "zca"}
        header = header | {"normalization": by_channel, "zca": normalization.get("zca", False)}
    if isinstance(header.get("training"), dict):
        header = header | {"training": by_field(header["training"])}
    facts = from_json(kind, header, optional=("zca", *optional))
    require(len(facts.classes) > 0, "it has no classes")
    shape, normalization = facts.image_shape, facts.normalization
    require(len(shape) == 3 and min(shape) > 0, "its image shape is malformed")
    require(normalization.is_whole and len(normalization.mean) == shape[0], "its normalisation is malformed")
    require(all(0 <= share <= 1 for share in facts.accuracies), "an accuracy is not between 0 and 1")
    return facts


def check_weights(shapes: Mapping[str, tuple[int, ...]], network: Network, model: str, whose: str) -> None:
    """Refuse weights of such shapes that are not those of the network `model`; they are somebody's, as "the pool's".

    Raises:
        RequestError: saying why not.
    """
    if any(getattr(layer, "track_running_stats", False) for layer in network.module.modules()):
        raise RequestError(
            f"{whose} networks keep no running statistics: choose --batch-norm batch, also when making them"
        )
    if shapes != {name: tuple(weight.shape) for name, weight in network.module.named_parameters()}:
        raise RequestError(f"{whose} weights do not fit {model}: they are of another network of that name")

"""Run configuration: every option of a run, in one place.

From the fields of `RunConfig` are made the keywords of `datadistill.distill`, the flags of the commands `distill`,
`plan` and `check`, the keys of recipes, and `config.json`. A new option is a field here, with its default, and a line
in the docstring that says what it means.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from datadistill.data.ipc import parse_ipc
from datadistill.data.options import Options
from datadistill.distillation.optimizer import Outer
from datadistill.engine.config import Engine
from datadistill.methods import METHODS, Method, Synthesis, options_of, record_of
from datadistill.models import ModelFactory
from datadistill.pretraining.initial_weights import KINDS
from datadistill.pretraining.pool import Pool
from datadistill.pretraining.trajectories import Trajectories
from datadistill.utils.errors import RequestError
from datadistill.utils.fields import Flag, as_values, by_name, check_names, options_in


def _parse_attack(text: str) -> tuple[str, str]:
    attacked, colon, target = text.partition(":")
    if not (attacked and colon and target):
        raise RequestError(f"'{text}' does not name two classes as in 0:1")
    return attacked, target


@dataclass(frozen=True)
class RunConfig:
    """Configuration of a run.

    Attributes:
        dataset: the dataset, by name (datadistill list datasets); or your own images: docs/your-data.md.
        data: how its images are read.
        method: the method, with its hyper-parameters.
        model: the network: a name (datadistill list models), your own as package.module:function or net.py:function,
            timm:NAME or torchvision:NAME; in Python also a function that returns a torch.nn.Module.
        weights: the kind of initial weights.
        scheme: how initial weights are drawn: datadistill list schemes.
        pool: trained networks for the pretrained kinds of weights, in a file: datadistill pretrain.
        trajectories: experts' weights after each epoch, in a folder, for a method that learns from experts: datadistill
            pretrain --trajectories.
        ipc: images per class; or one number for each class as in 5,10,20; or proportional:100, which shares 100 out as
            the classes have training images. With soft labels classes can share images: 0.5 makes one for two classes.
        iterations: outer steps; the same seed gives the same bits.
        budget: wall clock instead of iterations, such as 90s or 5m; with both, whichever ends first.
        seed: of all randomness.
        device: auto, cpu, cuda or mps.
        batch_norm: layers with running statistics: `batch` uses each batch's own, `frozen` what the network has.
        attack: malicious data, for audits: teach to take the first class for the second, as in 0:1, and the others for
            what they are.
        outer: the outer loop.
        engine: how hypergradients are computed.
    """

    dataset: str = field(default="mnist", metadata=Flag(metavar="NAME|FOLDER|FILE.npz|hf:NAME").metadata)
    data: Options = field(default_factory=Options)
    method: Method | Synthesis = field(default_factory=lambda: next(iter(METHODS)).build({}))
    model: str | ModelFactory = "lenet"
    weights: str = field(default="fixed-init", metadata=Flag(metavar="KIND", choices=KINDS).metadata)
    scheme: str = "xavier"
    pool: str | Path | Pool | None = field(default=None, metadata=Flag(metavar="FILE").metadata)
    trajectories: str | Path | Trajectories | None = field(default=None, metadata=Flag(metavar="FOLDER").metadata)
    ipc: int | float | str | Sequence[int] | None = field(
        default=None, metadata=Flag(parse_ipc, "N", otherwise="as the method has it, or one for each step").metadata
    )
    iterations: int | None = field(
        default=None,
        metadata=Flag(otherwise="the recipe's, or the paper's for so many images per class").metadata,
    )
    budget: float | str | None = field(default=None, metadata=Flag(metavar="TIME").metadata)
    seed: int = 0
    device: str | torch.device = "auto"
    batch_norm: Literal["auto", "refused", "batch", "frozen"] = field(
        default="auto", metadata=Flag(otherwise="batch where they are untrained").metadata
    )
    attack: tuple[str, str] | None = field(default=None, metadata=Flag(_parse_attack, "A:B").metadata)
    outer: Outer = field(default_factory=Outer, metadata=Flag(prefix="outer_").metadata)
    engine: Engine = field(default_factory=Engine)

    def changed(self, groups: Mapping[str, Mapping[str, Any]]) -> "RunConfig":
        """The same configuration with other values, in groups as a recipe has them.

        Args:
            groups: `run` has the run's own options and those of its data; `method` may have the `name` of another
                method, which then begins with its own settings; the others are named as the fields are.

        Raises:
            RequestError: a value is impossible.
            TypeError: a name is unknown.
        """
        run = dict(groups.get("run", {}))
        data = {name: run.pop(name) for name in NAMES_OF_DATA if name in run}
        own = as_values(RunConfig, run) | {"method": _changed_method(self.method, groups.get("method", {}))}
        for name, given in {**groups, "data": {**data, **groups.get("data", {})}}.items():
            if name not in ("run", "method"):
                group = getattr(self, name)
                own[name] = replace(group, **as_values(type(group), given))
        return replace(self, **own)

    @property
    def images_per_class(self) -> int | float | str | Sequence[int]:
        """Images per class as asked for; where nothing is, the method's default."""
        return record_of(self.method).ipc(self.method) if self.ipc is None else self.ipc

    def as_json(self) -> dict[str, Any]:
        """JSON-ready: the run's own options and those of its data beside each other, and the other groups.

        How images of one's own are read is left to their `Source`.
        """
        document: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name == "data":
                document |= {name: given for name, given in asdict(value).items() if name not in WITH_SOURCE}
            elif entry.name == "method":
                document["method"] = {"name": value.name, **options_of(value)}
            else:
                document[entry.name] = asdict(value) if entry.name in GROUPS else value
        plain: dict[str, Any] = json.loads(json.dumps(document, default=str))
        return plain


GROUPS = ("data", "method", "outer", "engine")
"""The fields that hold options of their own."""

NAMES_OF_DATA = tuple(entry.name for entry in fields(Options))
WITH_SOURCE = tuple(name for name in NAMES_OF_DATA if name != "zca")
"""How data of one's own is read: its `Source` holds that."""

IN_RUN = (*(entry.name for entry in fields(RunConfig) if entry.name not in GROUPS), *NAMES_OF_DATA)
"""What a recipe may have in [run]."""


def _changed_method(method: Method | Synthesis, given: Mapping[str, Any]) -> Method | Synthesis:
    options = dict(given)
    name = options.pop("name", method.name)
    if name == method.name:
        return replace(method, **by_name(type(method), options))
    other: Method | Synthesis = METHODS.get(name).build(options)
    return other


KEYWORDS = [option for option in options_in(RunConfig) if option.name not in ("dataset", "data", "method")]
"""The options that `distill` takes as keywords: data and method it is given as they are."""


def config_of(method: Method | Synthesis | None, config: RunConfig | None, options: Mapping[str, Any]) -> RunConfig:
    """Run configuration from the arguments of `distill`.

    Args:
        method: with its hyper-parameters; that of the config without one.
        config: what is asked for beside the options; the defaults without one.
        options: by the names of the fields; a group that is None has its defaults.

    Raises:
        TypeError: there is no option of that name.
    """
    check_names(options, KEYWORDS, "a run")
    default = RunConfig()
    given = {
        name: getattr(default, name) if value is None and name in GROUPS else value for name, value in options.items()
    }
    base = config or default
    return replace(base, **given, method=method or base.method)

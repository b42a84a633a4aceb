"""`config.json`: what a run was asked for and what it ran with, everything needed to run it again."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from datadistill.data.options import Options
from datadistill.data.real import Source
from datadistill.distillation.budget import parse_duration
from datadistill.distillation.config import GROUPS, WITH_SOURCE, RunConfig
from datadistill.methods import METHODS, Problem
from datadistill.models import same_model
from datadistill.models.gate import Named, names_in, refuse
from datadistill.utils.errors import DamagedFileError, RequestError, told
from datadistill.utils.fields import by_name, options_in
from datadistill.utils.schema import as_hinted, from_json

FORMAT = 1


@dataclass(frozen=True)
class Settings:
    """What `config.json` holds: everything needed to run again.

    Attributes:
        asked: what the run was asked for, every name and number settled, as `RunConfig.as_json` has it.
        versions: of the software that started the run.
        threads: of the processor that it ran on.
        recipe: the command that started it.
        pool_digest: of the contents of the pool's file.
        trajectories_digest: of the contents of the trajectories' folder.
        source: of data of one's own: what it was called, how it was read, and what was in it.
        kernels: our operations that took the place of PyTorch's; None in files from before that was recorded.
    """

    asked: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    threads: int = 1
    recipe: str = ""
    pool_digest: str | None = None
    trajectories_digest: str | None = None
    source: Source | None = None
    kernels: list[str] | None = None

    def names(self) -> Iterator[Named]:
        """Every text among the options, each of which may name something that is loaded."""
        prefixes = {option.name: option.flag.prefix for option in options_in(RunConfig)}
        yield from names_in({name: value for name, value in self.asked.items() if name not in GROUPS})
        for group in GROUPS:
            named = {"method" if name == "name" else name: value for name, value in self.asked.get(group, {}).items()}
            yield from names_in(named, prefixes[group])

    def reaching(self, folder: Path, data_root: str | Path | None = None) -> list[Named]:
        """What going on with the run needs to be said by the user again.

        Args:
            folder: of the run.
            data_root: where official dataset files lie.
        """
        return [one for one in self.names() if one.reach(data_root, folder)]

    def config(self, folder: Path, said: Collection[str] = (), data_root: str | Path | None = None) -> RunConfig:
        """What the run was asked for: a run folder may be anybody's, so what it names is asked of the user again.

        Args:
            folder: of the run.
            said: flags that the user gave, which take the place of what is here.
            data_root: where official dataset files lie.

        Raises:
            RequestError: it names code, something to fetch, or files elsewhere.
            DamagedFileError: a method has no such hyper-parameter, and the like.
        """
        unsaid = [one for one in self.names() if one.flag not in said]
        refuse(f"{folder / 'config.json'}", unsaid, data_root=data_root, inside=folder)
        groups = {name: value for name, value in self.asked.items() if name in GROUPS}
        run = {name: value for name, value in self.asked.items() if name not in GROUPS}
        how = {} if self.source is None else {name: getattr(self.source.options, name) for name in WITH_SOURCE}
        try:
            return RunConfig().changed({"run": run | how, **groups})
        except RequestError:
            raise
        except (TypeError, LookupError, ValueError, AttributeError, OverflowError) as error:
            raise DamagedFileError(f"the run's config.json is damaged: {error}") from error

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""
        own = asdict(self)
        return {"format": FORMAT, **own.pop("asked"), **own}

    def difference(self, other: "Settings") -> str | None:
        """The first setting in which two runs differ, in words, or None; what only changes bits does not count."""
        if self.source is not None and other.source is not None:
            if self.source.digest != other.source.digest:
                return f"the images of {self.source.given} have changed since it was started"
            # The same images may have been moved, or come from another kind of file.
            other = replace(other, asked=other.asked | {"dataset": self.asked["dataset"]}, source=self.source)
        there, here = (json.loads(json.dumps(settings.as_json())) for settings in (self, other))
        if same_model(self.asked["model"], other.asked["model"]):
            here["model"] = there["model"]
        for name in sorted(there, key=lambda name: here[name] is None):  # what was given first
            if name not in _ONLY_CHANGES_BITS and there[name] != here[name]:
                mine, theirs = (told(_brief(*pair)) for pair in ((there[name], here[name]), (here[name], there[name])))
                return f"{name} is {mine} there and {theirs} here"
        return None


_IN_FIRST_FILES = (
    *("dataset", "model", "weights", "scheme", "ipc", "seed", "method", "outer", "iterations", "budget", "device"),
    *("versions", "threads", "recipe"),
)
"""What the first files of this format have; of whatever came later, a file without it has the default."""

_BEFORE = {"batch_norm": "refused"}
"""What is meant by a file without an option, where it is not today's default."""

_ONLY_CHANGES_BITS = ("versions", "threads", "recipe", "pool", "trajectories", "kernels")
"""What two parts of one run may differ in. Pools and trajectories may have been moved: their digests tell them."""


def settings_of(problem: Problem, config: RunConfig, **facts: Any) -> Settings:
    """Settings of a run, from its problem and configuration.

    Args:
        problem: what is distilled: how names and numbers were settled.
        config: what was asked for.
        facts: attributes of `Settings` that neither of them has.
    """
    real, pool, trajectories = problem.real, problem.pool, problem.trajectories
    batch_norm: Any = problem.batch_norm
    settled = replace(
        config,
        dataset=real.name if real.source is None else real.source.place or real.name,
        data=replace(config.data, zca=real.is_whitened),
        model=problem.model,
        weights=problem.kind,
        scheme=problem.scheme,
        pool=None if pool is None else pool.path,
        trajectories=None if trajectories is None else trajectories.folder,
        ipc=problem.ipc,
        batch_norm=batch_norm,
        budget=parse_duration(config.budget),
        device=problem.device.type,
    )
    return Settings(
        settled.as_json(),
        pool_digest=None if pool is None else pool.digest,
        trajectories_digest=None if trajectories is None else trajectories.digest,
        source=real.source,
        **facts,
    )


def parse_settings(document: Any) -> Settings:
    """Settings from JSON.

    Raises:
        DamagedFileError: something is missing, unknown or of the wrong type.
    """
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DamagedFileError(f"it has no format {FORMAT}")
    for name in _IN_FIRST_FILES:
        if name not in document or (name == "ipc" and document[name] is None):
            raise DamagedFileError(f"'{name}' is missing or of the wrong type")
    defaults = RunConfig().as_json() | _BEFORE
    names = [entry.name for entry in fields(Settings) if entry.name != "asked"]
    facts = {name: document[name] for name in names if name in document}
    asked = {name: value for name, value in document.items() if name not in (*names, "format")}
    if asked.keys() - defaults.keys():
        raise DamagedFileError(f"'{min(asked.keys() - defaults.keys())}' is unknown")
    for cls in (RunConfig, Options):
        as_hinted(cls, {name: value for name, value in asked.items() if name not in GROUPS})
    return from_json(Settings, {"asked": defaults | asked | _parse_groups(asked, defaults), **facts})


def _parse_groups(asked: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The groups of options; an option that a file is too old to have is as it is by default."""
    groups: dict[str, dict[str, Any]] = {}
    for name in defaults.keys() & set(GROUPS):
        groups[name] = asked.get(name, {})
        if not isinstance(groups[name], dict):
            raise DamagedFileError(f"'{name}' is missing or of the wrong type")
        if name != "method":
            given = by_name(type(getattr(RunConfig(), name)), groups[name])
            as_hinted(type(getattr(RunConfig(), name)), given)
            groups[name] = defaults[name] | given
    groups["engine"].pop("window", None)  # it was a choice of storage before it was an option of a method
    method = groups["method"]
    if not isinstance(method.get("name"), str):
        raise DamagedFileError("the method has no name")
    known = {info.name: info for info in METHODS}.get(method["name"])
    if known is None:
        return groups
    given = by_name(known.make, method)
    as_hinted(known.make, given)
    old = {option.name: option.default for option in options_in(known.make)}
    return groups | {"method": old | given}


def _brief(value: Any, other: Any) -> Any:
    if isinstance(value, dict) and isinstance(other, dict):
        return {key: told(value[key]) for key in value if value[key] != other.get(key)}
    return value

"""Measured results of recipes, from their last full runs: `measured.json` beside them."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from datadistill.experiments.recipes.record import Recipe
from datadistill.utils.errors import DamagedFileError, require
from datadistill.utils.files import read_json, write_json
from datadistill.utils.schema import from_json

FILE = Path(__file__).with_name("measured.json")


@dataclass(frozen=True)
class Measured:
    """One full run of a recipe.

    Attributes:
        digest: of the recipe as it was then.
        what: what the value is: an accuracy, the fall of an attacked class, the gain of a sweep.
        value: measured, as a fraction.
        std: over networks; None for a single one, or where the value is no mean over networks.
        nets: networks.
        seconds: of distilling, added up over a sweep.
        seed: of the run.
        device: cpu, cuda or mps.
        threads: of the processor.
        date: day, in UTC.
        versions: of the software.
        details: every line of the table.
    """

    digest: str
    what: str
    value: float
    std: float | None
    nets: int
    seconds: float
    seed: int
    device: str
    threads: int
    date: str
    versions: dict[str, str] = field(default_factory=dict)
    details: list[dict[str, Any]] = field(default_factory=list)

    def is_stale(self, recipe: Recipe) -> bool:
        """Whether the recipe has changed since."""
        return self.digest != recipe.digest


def load_measured(path: Path | None = None) -> dict[str, Measured]:
    """All entries by the recipe's name; none where there is no file.

    Raises:
        DamagedFileError: the file is not what `record_measured` writes.
    """
    path = path or FILE
    if not path.exists():
        return {}
    document = read_json(path)
    try:
        require(isinstance(document, dict), "it is not a JSON object")
        return {name: from_json(Measured, entry, optional=()) for name, entry in document.items()}
    except DamagedFileError as error:
        raise DamagedFileError(f"{path} is damaged: it does not hold measured values ({error})") from error


def record_measured(name: str, entry: Measured, path: Path | None = None) -> None:
    """Put an entry in, or in place of the recipe's last one; a reader finds the old file or the new one.

    Lines that were judged then and not now, as baselines may be, are kept where recipe and seed are the same.
    """
    entries = load_measured(path)
    before, names = entries.get(name), [line["name"] for line in entry.details]
    if before is not None and (before.digest, before.seed) == (entry.digest, entry.seed):
        entry = replace(entry, details=entry.details + [old for old in before.details if old["name"] not in names])
    entries[name] = entry
    write_json(path or FILE, json.loads(json.dumps({key: asdict(entries[key]) for key in sorted(entries)})))

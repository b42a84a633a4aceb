"""Verdicts: a recipe's results beside its expected ranges."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datadistill.evaluation import Summary
from datadistill.experiments.recipes import Recipe
from datadistill.experiments.recipes.measured import Measured
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import versions
from datadistill.utils.schema import from_json


@dataclass(frozen=True)
class Line:
    """One thing that was judged: what was distilled, a point of a sweep, or a baseline.

    Attributes:
        name: in tables.
        images: distilled ones.
        nets: networks.
        accuracy: on the test split.
        before: of the networks as they start.
        seconds: of distilling; 0 where nothing was distilled for it.
        falls: with malicious data, the accuracy that it costs on each class, by name.
        fall_std: over networks, of the attacked class's fall.
    """

    name: str
    images: int
    nets: int
    accuracy: Summary
    before: Summary | None
    seconds: float = 0.0
    falls: dict[str, float] = field(default_factory=dict)
    fall_std: float | None = None


def parse_line(document: Any) -> Line:
    """A line from its JSON.

    Raises:
        DamagedFileError: it is none.
    """
    return from_json(Line, document)


@dataclass(frozen=True)
class Check:
    """A measured value and the range that it is expected in.

    Attributes:
        what: was measured.
        value: as a fraction.
        low: lowest value that is expected.
        high: highest value that is expected.
        unit: of a hundred times the value.
    """

    what: str
    value: float
    low: float
    high: float
    unit: str = "points"

    @property
    def passed(self) -> bool:
        return self.low <= self.value <= self.high

    def __str__(self) -> str:
        bounds = [f"at least {100 * self.low:.1f}"] if self.low > -1 else []
        bounds += [f"at most {100 * self.high:.1f}"] if self.high < 1 else []
        return f"{self.what} {100 * self.value:.2f} {self.unit}, expected {' and '.join(bounds) or 'anything'}"


@dataclass(frozen=True)
class Verdict:
    """A recipe that was run.

    Attributes:
        recipe: what was run.
        lines: what was distilled or the points of the sweep, then baselines.
        shortened: in what it was less than the recipe, in words; empty for the whole.
        seed: of all randomness.
        device: cpu, cuda or mps.
        threads: of the processor.
        folder: with all of it.
    """

    recipe: Recipe
    lines: tuple[Line, ...]
    shortened: str
    seed: int
    device: str
    threads: int
    folder: Path

    @property
    def checks(self) -> tuple[Check, ...]:
        """Everything that is expected; the first is what is recorded."""
        return check(self.recipe, self.lines)

    @property
    def passed(self) -> bool | None:
        """Whether all is as expected; None for a shorter form, of which nothing is expected."""
        return None if self.shortened else all(entry.passed for entry in self.checks)

    @property
    def seconds(self) -> float:
        """Of distilling."""
        return sum(line.seconds for line in self.lines)

    def sentence(self) -> str:
        """The verdict in one line; values are in percent or points."""
        if self.shortened:
            return f"no verdict: {self.shortened}"
        wrong = [entry for entry in self.checks if not entry.passed]
        return f"{'FAIL' if wrong else 'pass'}: {'; '.join(map(str, wrong or self.checks))}"

    def as_json(self) -> dict[str, Any]:
        """JSON-ready; accuracies are fractions."""
        return {
            "recipe": self.recipe.name,
            "passed": self.passed,
            "shortened": self.shortened,
            "checks": [asdict(entry) | {"passed": entry.passed} for entry in self.checks],
            "results": [asdict(line) for line in self.lines],
            "paper": self.recipe.paper,
            "seed": self.seed,
            "device": self.device,
            "threads": self.threads,
            "seconds": self.seconds,
            "folder": str(self.folder),
            "versions": versions(),
        }

    def as_measured(self) -> Measured:
        """What is recorded of a whole run.

        Raises:
            RequestError: it was shortened.
        """
        if self.shortened:
            raise RequestError(f"a shorter form is not recorded: {self.shortened}")
        first, own = self.checks[0], self.lines[0]
        falls = self.recipe.expect.attacked_falls_at_least is not None
        std = own.fall_std if falls else None if self.recipe.sweep else own.accuracy.std
        return Measured(
            digest=self.recipe.digest,
            what=first.what,
            value=first.value,
            std=std,
            nets=own.nets,
            seconds=round(self.seconds, 1),
            seed=self.seed,
            device=self.device,
            threads=self.threads,
            date=f"{datetime.now(UTC):%Y-%m-%d}",
            versions=versions(),
            details=[asdict(line) for line in self.lines],
        )


def check(recipe: Recipe, lines: Sequence[Line]) -> tuple[Check, ...]:
    """Verdict on lines by a recipe's expected ranges."""
    expect, own, found = recipe.expect, lines[0], []
    if expect.accuracy is not None:
        found.append(Check("accuracy", own.accuracy.mean, *expect.accuracy, "%"))
    if expect.attacked_falls_at_least is not None or expect.others_fall_at_most is not None:
        attacked = recipe.run["attack"][0]
        others = {name: fall for name, fall in own.falls.items() if name != attacked}
        worst = max(others, key=lambda name: others[name])
        if expect.attacked_falls_at_least is not None:
            found.append(Check(f"fall of class {attacked}", own.falls[attacked], expect.attacked_falls_at_least, 1.0))
        if expect.others_fall_at_most is not None:
            found.append(Check(f"fall of class {worst}", others[worst], -1.0, expect.others_fall_at_most))
    if expect.gain_at_least is not None:
        found.append(Check("gain", lines[-1].accuracy.mean - own.accuracy.mean, expect.gain_at_least, 1.0))
    if expect.std_at_most is not None:
        found.append(Check("deviation", own.accuracy.std or 0.0, -1.0, expect.std_at_most))
    return tuple(found)

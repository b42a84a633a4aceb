"""Runner of an experiment: its distilled sets and baselines, each judged once and kept."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from datadistill.baselines import BASELINES
from datadistill.data import RealData
from datadistill.distillation.config import RunConfig
from datadistill.distillation.loop import distill
from datadistill.distillation.problem import make_problem
from datadistill.distillation.result import Run
from datadistill.distillation.run_folder import RunFolder
from datadistill.distilled import DistilledData, load_distilled
from datadistill.evaluation import (
    Score,
    evaluate,
    evaluate_sets,
    pooled_summary,
    summarize,
    work_of,
)
from datadistill.evaluation.audit import audit
from datadistill.experiments.recipes import Point, Recipe
from datadistill.experiments.verdict import Line, parse_line
from datadistill.methods import Problem
from datadistill.pretraining.pool import Pool
from datadistill.report.card import conclude
from datadistill.training.carried import shared_recipe
from datadistill.utils import ranks
from datadistill.utils.errors import DamagedFileError, require
from datadistill.utils.files import read_json, write_json
from datadistill.utils.progress import Screen
from datadistill.utils.runtime import stream

RESULTS = "results.json"
OWN = "these images"
"""The name of the line of what was distilled, in a recipe without a sweep."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """A recipe while it is run: what it asks for is distilled and judged, and what is done is kept.

    Attributes:
        recipe: what is run.
        real: the dataset, on the device.
        changes: what `RunConfig` has instead of what the recipe says: seed, device, length, pool, trajectories.
        nets: to judge by.
        baselines: whether the recipe's are judged too.
        folder: takes runs and results.
        command: to record.
        screen: who is told how it is doing.
        check: raises an error once the folder has been removed.
    """

    recipe: Recipe
    real: RealData
    changes: dict[str, Any]
    nets: int | None
    baselines: bool
    folder: Path
    command: str
    screen: Screen
    check: Callable[[], None] = lambda: None
    _runs: dict[Path, Run] = field(default_factory=dict)

    @property
    def pool(self) -> Pool | None:
        """Of trained networks, where the recipe has one."""
        pool: Pool | None = self.changes["pool"]
        return pool

    def lines(self) -> list[Line]:
        """Judge everything that is not judged yet."""
        if self.recipe.expect.sets > 1:
            points = [self._sets()]
        else:
            points = [self._once(point.label or OWN, partial(self._point, point)) for point in self.recipe.points]
        names = self.recipe.baselines if self.baselines else ()
        return points + [self._once(f"baseline {name}", partial(self._baseline, name)) for name in names]

    def _sets(self) -> Line:
        """Several distilled sets, each from a seed and judged by networks of its own, as one line."""
        count = self.recipe.expect.sets
        found = [self._once(f"set {n + 1} of {count}", partial(self._set, n)) for n in range(count)]
        nets = found[0].nets
        befores = [line.before for line in found if line.before is not None]
        return replace(
            found[0],
            name=OWN,
            nets=count * nets,
            accuracy=pooled_summary([line.accuracy for line in found], nets),
            before=pooled_summary(befores, nets) if befores else None,
            seconds=sum(line.seconds for line in found),
        )

    def _set(self, number: int) -> Line:
        """The distilled set of this number; the first is what a recipe with one set gives."""
        config, place = self._config(self.recipe.points[0]), self.place(self.recipe.points[0])
        config = replace(config, seed=config.seed + number)
        place = place if number == 0 else place.with_name(f"{place.name}-set-{number + 1}")
        self.screen.say(f"{self.recipe.name}: set {number + 1} of {self.recipe.expect.sets}")
        run = self._distill(config, place)
        _, score = conclude(run, self.real, self.nets, self.pool, seed=number)
        return _line(run.distilled, score, run.seconds)

    def _once(self, name: str, judge: Callable[[], Line]) -> Line:
        """A line from the results so far, or a new one, which is kept."""
        line = ranks.from_first(lambda: self._results().get(name))
        if line is None:
            line = replace(judge(), name=name)
            if ranks.leads():
                self.check()
                entries = {name: asdict(line) for name, line in {**self._results(), name: line}.items()}
                write_json(self.folder / RESULTS, entries)
        return line

    def _results(self) -> dict[str, Line]:
        """The lines so far, by name.

        Raises:
            DamagedFileError: their file is damaged.
        """
        path = self.folder / RESULTS
        results = read_json(path) if path.exists() else {}
        try:
            require(isinstance(results, dict), "it is not a JSON object")
            return {name: parse_line(line) for name, line in results.items()}
        except DamagedFileError as error:
            raise DamagedFileError(
                f"{path} is damaged ({error}): remove it, and add --resume to judge again"
            ) from error

    def _config(self, point: Point) -> RunConfig:
        return replace(self.recipe.config(point), **self.changes)

    def _distill(self, config: RunConfig, place: Path) -> Run:
        """The run of a folder, which goes on with what is there."""
        resume = ranks.from_first(RunFolder(place).exists)
        with self.screen.watch() as reporter:
            return distill(self.real, config=config, out=place, resume=resume, command=self.command, reporter=reporter)

    def place(self, point: Point) -> Path:
        """Where a point's run lies; points that are distilled alike share one."""
        if all(self._first(other) == self._first(point) for other in self.recipe.points):
            return self.folder / "run"
        return self.folder / f"run-{self._first(point).slug}"

    def _first(self, point: Point) -> Point:
        """The first point that is distilled like this one."""
        mine = self.recipe.config(point)
        return next(other for other in self.recipe.points if self.recipe.config(other) == mine)

    def _point(self, point: Point) -> Line:
        config, place = self._config(point), self.place(point)
        if place not in self._runs:
            if point.label:
                self.screen.say(f"{self.recipe.name}: {point.label}")
            self._runs[place] = self._distill(config, place)
        run = self._runs[place]
        if point.scheme is None:
            _, score = conclude(run, self.real, self.nets, self.pool)
        else:
            with self.screen.bar(f"evaluating {point.label}", work_of(run.distilled, self.nets)) as count:
                score = evaluate(
                    run.distilled,
                    self.real,
                    weights="random-init",
                    scheme=point.scheme,
                    nets=self.nets,
                    count=count,
                )
        line = _line(run.distilled, score, run.seconds if self._first(point) == point else 0.0)
        return line if config.attack is None else self._attacked(line, config, run.distilled)

    def _attacked(self, line: Line, config: RunConfig, distilled: DistilledData) -> Line:
        """The line with what malicious data costs good networks on each class."""
        problem = self._problem(config)
        assert self.pool is not None, "recipes with an attack have a pool"
        assert config.attack is not None
        judges = self.pool.for_judging.to(problem.device).sample(line.nets, stream(0, "evaluation"))
        starts = judges if problem.starts.fixed is None else [problem.starts.fixed]
        tables = []
        with self.screen.bar("class by class", len(starts)) as count:
            for start in starts:
                found = audit(distilled, self.real, problem.network, [start], trained=True, count=count)
                tables.append({change.name: change.before - change.after for change in found.classes})
        falls = {name: sum(table[name] for table in tables) / len(tables) for name in tables[0]}
        attacked = [table[config.attack[0]] for table in tables]
        return replace(line, falls=falls, fall_std=summarize(attacked, len(self.real.test)).std)

    def _problem(self, config: RunConfig) -> Problem:
        """Problem of a configuration, for those who learn from no experts."""
        return make_problem(self.real, replace(config, trajectories=None))

    @cached_property
    def _shared_problem(self) -> Problem:
        """One for all baselines of a recipe: they share what is costly."""
        return self._problem(self._config(self.recipe.points[0]))

    def _baseline(self, name: str) -> Line:
        info, problem = BASELINES.get(name), self._shared_problem
        mine = ranks.from_first(lambda: load_distilled(self.place(self.recipe.points[0])))
        recipe, rates, steps, epochs = shared_recipe(mine), mine.learning_rates, 1, 1
        if rates is not None and recipe is None:
            steps, epochs = len(mine.batches), len(rates) // len(mine.batches)
        sets = info(steps, epochs, recipe=recipe, bar=self.screen.bar).run(problem)
        pool, title = None if mine.is_condensed else self.pool, f"evaluating {name}"
        _, score = evaluate_sets(sets, problem.real, nets=self.nets, pool=pool, bar=self.screen.bar, title=title)
        return _line(sets[0], score, 0.0)


def _line(distilled: DistilledData, score: Score, seconds: float) -> Line:
    return Line("", len(distilled.labels), score.nets, score.accuracy, score.before, seconds)

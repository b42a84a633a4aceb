"""compare: one table of distilled sets and baselines, judged alike."""

import argparse
import json
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from datadistill.baselines import BASELINES, full_dataset
from datadistill.cli import evaluate as evaluate_command
from datadistill.cli.common import (
    Fault,
    accuracy_title,
    given_config,
    given_models,
    listed,
    load_data,
    print_faults,
    print_table,
    protocol_title,
    score_cells,
)
from datadistill.cli.parsing import Parser, one_of
from datadistill.data import RealData
from datadistill.distillation.problem import make_problem, started_like
from datadistill.distilled import DistilledData, file_of, load_distilled
from datadistill.evaluation import EvalConfig, Score, evaluate, evaluate_sets, work_of
from datadistill.methods import Problem
from datadistill.models import model_name, same_model
from datadistill.models.gate import passed
from datadistill.training.carried import dc_recipe, shared_recipe
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.errors import RequestError
from datadistill.utils.progress import counting
from datadistill.utils.runtime import resolve_device, versions
from datadistill.utils.schema import number_or_none

USAGE = "PATH..."
DESCRIPTION = """\
Judge every set with every network by one protocol, and with them baselines of
the same size, steps and initial weights, with rates tuned for the same network;
with protocol dc nothing is tuned.

examples:
  datadistill compare runs/RUN --baselines random,kmeans
  datadistill compare a.safetensors b.safetensors --models lenet,convnet --nets 5
  datadistill compare runs/RUN --protocol dc --baselines random,herding --full-epochs 20
"""


@dataclass(frozen=True)
class _Size:
    """Size and training of a distilled set, which its baselines share.

    Attributes:
        ipc: images of each class.
        steps: batches.
        epochs: walks over them.
        model: the network.
        kind: of initial weights.
        scheme: they are drawn by.
        path: of the set whose saved initial weights are used, or empty.
        recipe: by which both are trained on, but for steps of the set's own; then steps and epochs are 1.
    """

    ipc: tuple[int, ...]
    steps: int
    epochs: int
    model: str
    kind: str
    scheme: str
    path: str
    recipe: TrainRecipe | None = None


@dataclass(frozen=True)
class _Line:
    """One line of the table.

    Attributes:
        name: of the set.
        images: how many it has.
        score: by one network, or why there is none.
        size: bytes of its file, or of the file that it would be; None for the full dataset.
        cost: seconds of making it: of distilling, or of choosing and tuning; None where they are not known.
    """

    name: str
    images: int
    score: Score | Fault
    size: int | None = None
    cost: float | None = None

    def as_json(self) -> dict[str, Any]:
        """JSON-ready; `seconds` are of judging."""
        mine = {"set": self.name, "distilled_images": self.images, "bytes": self.size, "making_seconds": self.cost}
        return mine | self.score.as_json()


def add_flags(parser: Parser) -> None:
    evaluate_command.add_flags(parser)
    parser.add_argument(
        "--baselines", metavar="A,B", default="", help=f"any of {', '.join(BASELINES.names())} (default: none)"
    )
    parser.add_argument(
        "--full-epochs",
        type=int,
        metavar="N",
        default=0,
        help="with protocol dc: train one network on the full dataset for N epochs, too; 0 leaves it out (default: 0)",
    )


def run(arguments: argparse.Namespace) -> None:
    parse = one_of(BASELINES.kind, BASELINES.names())
    try:
        names = [parse(name) for name in listed(arguments.baselines)]
    except argparse.ArgumentTypeError as error:
        raise RequestError(f"--baselines: {error}") from error
    if arguments.full_epochs < 0:
        raise RequestError(f"--full-epochs is {arguments.full_epochs}, but must not be negative")
    models = given_models(arguments)
    sets = {path: load_distilled(path) for path in arguments.paths}
    real, config = _real(sets, arguments), given_config(arguments)
    faults = {path: evaluate_command.faults_of(models, data, real, config) for path, data in sets.items()}
    lines, sizes = [], dict[_Size, DistilledData]()
    for path, data in sets.items():
        stored, cost = file_of(path).stat().st_size, number_or_none(data.provenance.cost.get("seconds"))
        for model in models:
            if model in faults[path]:
                lines.append(_Line(path, len(data.labels), faults[path][model], stored, cost))
                continue
            if names or arguments.full_epochs:
                sizes.setdefault(_size(path, data, model, config), data)
            work = work_of(data, config.nets, config.protocol, **config.changes)
            with counting(f"evaluating {path}", work) as count:
                score = evaluate_command.judged(models, data, real, config, model, count)
            lines.append(_Line(path, len(data.labels), score, stored, cost))
    evaluate_command.refuse_if_none_is_judged([line.score for line in lines])
    broken = {str(line.score.model) for line in lines if isinstance(line.score, Fault)}
    sizes = {size: data for size, data in sizes.items() if size.model not in broken}
    lengths = {(size.steps, size.epochs) for size in sizes if size.recipe is None}
    for size, data in sizes.items():
        problem = _problem(size, data, real, config)
        lines += [_baseline(name, problem, size, config, len(sets) > 1, len(lengths) > 1) for name in names]
        lines += _full(problem, size, config, arguments.full_epochs)
    _print(lines, real, arguments)
    evaluate_command.fail_for_faults([line.score for line in lines])


def _real(sets: dict[str, DistilledData], arguments: argparse.Namespace) -> RealData:
    datasets = {data.provenance.dataset for data in sets.values()}
    if len(datasets) > 1 and arguments.dataset is None:
        raise RequestError(
            f"these sets were made from {', '.join(sorted(datasets))}: say with --dataset what to test on"
        )
    if len({data.provenance.normalization.zca is None for data in sets.values()}) > 1:
        raise RequestError("some of these sets are whitened (ZCA) and some are not: compare each kind by itself")
    name = passed("dataset", arguments.dataset, datasets.pop(), data_root=arguments.data_root)
    first = next(iter(sets.values()))
    return load_data(name, arguments, like=first).to(resolve_device(arguments.device))


def _size(path: str, data: DistilledData, model: str | None, config: EvalConfig) -> _Size:
    mine, steps, fresh = data.provenance, len(data.batches), data.is_condensed or config.protocol == "dc"
    recipe = dc_recipe(data, **config.changes) if fresh else shared_recipe(data)
    counts = torch.bincount(data.labels.cpu(), minlength=len(mine.classes)).tolist()
    if recipe is not None and 0 in counts:
        raise RequestError(f"baselines have images of every class, but {path} has not: leave out --baselines")
    if recipe is None and (0 in counts or sorted(data.batches.flatten().tolist()) != list(range(len(data.labels)))):
        raise RequestError(
            f"baselines are cut into steps of different images, some of each class, which those of {path} are not: "
            "leave out --baselines"
        )
    epochs = int(mine.inner.get("epochs", 1)) if data.learning_rates is None else len(data.learning_rates) // steps
    chosen = str(passed("network", model, mine.model))
    own = not fresh and config.weights == "own" and same_model(model_name(chosen), mine.model)
    usual = "default" if fresh else "xavier"
    return _Size(
        ipc=tuple(counts),
        steps=steps if recipe is None else 1,
        epochs=epochs if recipe is None else 1,
        model=chosen,
        kind=str(mine.weights.get("kind")) if own else "random-init",
        scheme=config.scheme or str(mine.weights.get("scheme", usual)),
        path=path if own and data.initial_weights is not None else "",
        recipe=recipe,
    )


def _problem(size: _Size, data: DistilledData, real: RealData, config: EvalConfig) -> Problem:
    problem = make_problem(
        real,
        model=size.model,
        weights="random-init" if size.path else size.kind,
        scheme=size.scheme,
        ipc=size.ipc,
        seed=config.seed,
        device=real.train.images.device,
        batch_norm=config.batch_norm or data.provenance.batch_norm,
        pool=config.pool,
    )
    return started_like(problem, data, size.kind) if size.path else problem


def _baseline(
    name: str, problem: Problem, size: _Size, config: EvalConfig, says_like: bool, says_length: bool
) -> _Line:
    """Line of a baseline, whose name says which set it is like and how long it trains, where these differ."""
    info, began = BASELINES.get(name), time.perf_counter()
    sets = info(size.steps, size.epochs, recipe=size.recipe, bar=counting).run(problem)
    seconds = time.perf_counter() - began
    protocol = "own" if config.protocol == "dc" else config.protocol  # the sets have the recipe
    _, score = evaluate_sets(
        sets,
        problem.real,
        model=None if config.protocol == "nearest" else size.model,
        nets=config.nets,
        protocol=protocol,
        split=config.split,
        seed=config.seed,
        pool=problem.pool,
        bar=counting,
        title=f"evaluating {name}",
    )
    like = f"{name} (like {size.path})" if size.path and says_like else name
    if says_length and size.recipe is None:
        like += f", {size.steps} steps, {size.epochs} epochs"
    return _Line(like, len(sets[0].labels), score, len(sets[0].as_file()), round(seconds, 3))


def _full(problem: Problem, size: _Size, config: EvalConfig, epochs: int) -> list[_Line]:
    """A network that knows the whole dataset, where that is asked for."""
    if not epochs:
        return []
    if size.recipe is None or config.protocol == "nearest":
        raise RequestError("--full-epochs trains on the full dataset by protocol dc: add --protocol dc")
    data = full_dataset(problem, replace(size.recipe, epochs=epochs))
    with counting("training on the full dataset", work_of(data, 1)) as count:
        score = evaluate(
            data, problem.real, model=size.model, nets=1, split=config.split, seed=config.seed, count=count
        )
    return [_Line(f"full dataset, {epochs} epochs", len(data.labels), score)]


def _print(lines: list[_Line], real: RealData, arguments: argparse.Namespace) -> None:
    if arguments.json:
        document = {
            "dataset": real.origin,
            "protocol": arguments.protocol,
            "results": [line.as_json() for line in lines],
            "chance": 1 / real.num_classes,
            "versions": versions(),
        }
        print(json.dumps(document, indent=2))
        return
    judged = [(line, line.score) for line in lines if isinstance(line.score, Score)]
    distilled = [score for line, score in judged if not line.name.startswith("full dataset")]
    alike = len({score.training for score in distilled}) == 1
    accuracy = accuracy_title([score for _, score in judged])
    columns = ["set", "images", "network", "weights", "nets", "untrained", accuracy, "95 % interval", "s"]
    rows = []
    for line, score in judged:
        name = line.name if alike else f"{line.name}, {score.training or 'steps of its own'}"
        rows.append([name, str(line.images), *score_cells(score)])
    print_table(f"{real.name}, {protocol_title(arguments.protocol, distilled)}", columns, rows)
    print_faults({line.score.model: line.score.error for line in lines if isinstance(line.score, Fault)})

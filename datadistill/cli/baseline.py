"""baseline: distilled data that is chosen, not optimised."""

import argparse
import json
import shlex
from dataclasses import replace
from pathlib import Path

from datadistill.baselines import BASELINES, Optimized
from datadistill.cli.common import (
    add_data_flags,
    add_nets_flag,
    add_run_flag,
    given_pool,
    ipc_name,
    load_data,
    new_folder,
    print_table,
    score_document,
    steps_for,
)
from datadistill.cli.parsing import Parser, command_line, number, one_of, positive_int
from datadistill.distillation.problem import make_problem
from datadistill.distillation.run_folder import RunFolder
from datadistill.distilled import FILE_NAME, DistilledData
from datadistill.evaluation import Score, evaluate_sets, percent
from datadistill.pretraining.initial_weights import KINDS
from datadistill.pretraining.pool import Pool
from datadistill.report.card import judging
from datadistill.training.recipe import DC, TrainRecipe, changed
from datadistill.utils import ranks
from datadistill.utils.errors import RequestError
from datadistill.utils.progress import counting, say, tell
from datadistill.utils.runtime import versions

USAGE = ""
DESCRIPTION = """\
Choose images instead of optimising them, with learning rates tuned on held-out
training data, and judge them as any distilled data. Several sets are judged
together and saved as distilled.safetensors, distilled-2.safetensors, ...

With --protocol dc nothing is tuned: networks are trained on the images as the field
does it, with any number of images per class.

examples:
  datadistill baseline --how random --weights random-init --steps 10 --epochs 3
  datadistill baseline --how kmeans --dataset digits --model mlp --sets 5
  datadistill baseline --how herding --model convnet --protocol dc --ipc 10 --nets 5
"""

STEPS, EPOCHS = 10, 3


def add_flags(parser: Parser) -> None:
    parser.add_argument(
        "--how",
        type=one_of("baseline", BASELINES.names()),
        metavar="NAME",
        default="random",
        help="; ".join(f"{info.name}: {info.line}" for info in BASELINES) + " (default: %(default)s)",
    )
    add_data_flags(parser, "mnist")
    add_run_flag(parser, "model", default="lenet")
    parser.add_argument(
        "--weights",
        type=one_of(KINDS.kind, KINDS.names()),
        metavar="KIND",
        default="random-init",
        help="initial weights (default: %(default)s)",
    )
    parser.add_argument(
        "--scheme", metavar="NAME", help="how they are drawn (default: xavier, with protocol dc PyTorch's own)"
    )
    add_run_flag(parser, "ipc", "one for each step")
    parser.add_argument(
        "--steps",
        type=positive_int,
        metavar="N",
        help=f"batches (default: {STEPS}, or as many of them as --ipc can be cut into)",
    )
    parser.add_argument(
        "--epochs",
        type=positive_int,
        metavar="N",
        help=f"walks over them (default: {EPOCHS}, with protocol dc 300, or 1000 with augmentation)",
    )
    parser.add_argument(
        "--protocol",
        type=one_of("protocol", ("own", "dc")),
        metavar="NAME",
        default="own",
        help="own: steps with tuned rates; dc: the field's protocol, with nothing tuned (default: %(default)s)",
    )
    parser.add_argument("--augment", metavar="PARTS|none", help="of protocol dc (default: none)")
    parser.add_argument("--rate", type=number, metavar="X", help="of protocol dc (default: 0.01)")
    add_run_flag(parser, "pool")
    parser.add_argument(
        "--sets",
        type=positive_int,
        metavar="N",
        help="sets that are made, or drawn to choose from; --nets are shared out "
        f"(default: 1, optimized {Optimized.sets})",
    )
    add_run_flag(parser, "seed")
    add_run_flag(parser, "device")
    parser.add_argument("--out", metavar="DIR", help="where to write (default: a new folder in runs/)")
    add_nets_flag(parser)
    add_run_flag(parser, "batch_norm")
    parser.add_argument("--json", action="store_true", help="one JSON document, as evaluate prints")


def run(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments)
    usual = (arguments.steps or steps_for(STEPS, arguments.ipc), arguments.epochs or EPOCHS)
    steps, epochs = usual if settings is None else (1, 1)
    folder = None if arguments.out is None else RunFolder(Path(arguments.out))
    if folder is not None and ranks.leads():
        folder.check_free()
    real = load_data(arguments.dataset or "mnist", arguments)
    problem = make_problem(
        real,
        model=arguments.model,
        weights=arguments.weights,
        scheme=arguments.scheme or ("xavier" if settings is None else "default"),
        ipc=arguments.ipc or steps,
        seed=arguments.seed or 0,
        device=arguments.device or "auto",
        batch_norm=arguments.batch_norm or "auto",
        pool=given_pool(arguments),
    )
    for remark in problem.network.remarks:
        say(remark)
    info = BASELINES.get(arguments.how)
    drawn = arguments.sets or info.sets
    sets = info(steps, epochs, drawn, settings, counting).run(problem)
    scores, score = evaluate_sets(
        sets, problem.real, model=arguments.model, nets=arguments.nets, pool=problem.pool, bar=counting
    )
    if not ranks.leads():
        return
    ipc = ",".join(map(str, problem.ipc)) if isinstance(problem.ipc, tuple) else problem.ipc
    recipe = f"datadistill baseline --how {info.name} --dataset {shlex.quote(real.origin)} "
    recipe += f"--model {shlex.quote(problem.model)} "
    recipe += "".join(f"{word} " for word in real.options.as_words())
    recipe += "" if problem.pool is None else f"--pool {shlex.quote(arguments.pool)} "
    recipe += f"--weights {problem.kind} --scheme {problem.scheme} --ipc {ipc} "
    recipe += f"--steps {steps} --epochs {epochs} " if settings is None else _words(settings)
    recipe += f"--sets {drawn} --seed {problem.seed}"
    recipe += "" if arguments.batch_norm is None else f" --batch-norm {arguments.batch_norm}"
    place = new_folder(f"{real.name}-{info.name}-{ipc_name(problem.ipc)}") if folder is None else folder.path
    with RunFolder(place).locked():
        for number, (data, own) in enumerate(zip(sets, scores, strict=True), 1):
            mine = data.provenance
            mine = replace(mine, versions=versions(), scores=[*mine.scores, own.as_json()], recipe=recipe)
            replace(data, provenance=mine).save(place / _file_name(number))
    if arguments.json:
        document = score_document(str(place), problem.real, arguments.protocol, [score])
        print(json.dumps(document | {"sets": len(sets)}, indent=2))
    else:
        _print(sets, score, place, problem.pool)


def _settings(arguments: argparse.Namespace) -> TrainRecipe | None:
    """Of protocol dc, where it is asked for.

    Raises:
        RequestError: a flag belongs to the other protocol.
    """
    condensed = arguments.protocol == "dc"
    for name in ("steps", "pool") if condensed else ("augment", "rate"):
        if getattr(arguments, name) is not None:
            raise RequestError(f"--{name} does not go with protocol {arguments.protocol}: leave it out")
    if condensed and arguments.weights != "random-init":
        raise RequestError(f"weights is {arguments.weights}, but protocol dc trains fresh networks: leave it out")
    changes = {name: getattr(arguments, name) for name in ("epochs", "augment", "rate")}
    return changed(DC, **changes) if condensed else None


def _words(settings: TrainRecipe) -> str:
    return f"--protocol dc --epochs {settings.epochs} --augment {settings.augment} --rate {settings.lr:g} "


def _file_name(number: int) -> str:
    """`distilled.safetensors`, `distilled-2.safetensors`, ..."""
    return FILE_NAME if number == 1 else FILE_NAME.replace(".", f"-{number}.")


def _print(sets: list[DistilledData], score: Score, place: Path, pool: Pool | None) -> None:
    method = sets[0].provenance.method
    which = f"{len(sets[0].labels)} images"
    which = which if len(sets) == 1 else f"{len(sets)} sets of {which}"
    rates = "rates" if len(sets) > 1 or score.training else f"{method['schedule']} rate {method['rate']:g}"
    how = f"protocol dc: {score.training}" if score.training else f"{rates} tuned on held-out data"
    trained = f"{score.nets} network{'s' if score.nets > 1 else ''} trained"
    print_table(
        f"{method['name']}: {which}, {how}",
        ["test accuracy", "these images"],
        [["before", percent(score.before)], [trained, percent(score.accuracy)]],
    )
    tell(f"folder    {place}")
    tell(f"evaluate  {command_line(*judging(sets[0], str(place), pool))}")

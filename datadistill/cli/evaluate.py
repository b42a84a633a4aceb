"""evaluate: networks are trained on distilled data and tested on real images."""

import argparse
import json

import torch

from datadistill.cli.common import (
    add_batch_norm_flag,
    add_data_flags,
    add_nets_flag,
    add_pool_flag,
    add_protocol_flags,
    chosen_dataset,
    given_config,
    given_pool,
    load_data,
    print_table,
    protocol_title,
    score_document,
)
from datadistill.cli.parsing import Parser, one_of
from datadistill.data import RealData
from datadistill.distilled import load_distilled
from datadistill.evaluation import Score, evaluate, percent, work_of
from datadistill.models import chosen_model, create_model
from datadistill.utils.progress import counting
from datadistill.utils.runtime import resolve_device

USAGE = "PATH..."
DESCRIPTION = """\
Train networks on distilled data and test them on the real test split.

Data made for one fixed initialisation is judged from the initial weights in its
file; --weights random-init shows what it does for networks it does not know. Data
made for networks of a pool is judged on those that are reserved for judging in the
pool given with --pool, or on all networks of another pool.

Protocol dc is how the field compares distilled data: fresh networks, trained on the
images for hundreds of epochs. It judges any data; data made for it (dc, dsa, dm,
mtt) is judged by it without asking.

examples:
  datadistill evaluate runs/mnist-dd-fixed-init-1
  datadistill evaluate a.safetensors b.safetensors --models lenet,convnet --nets 5
  datadistill evaluate runs/RUN --protocol dc --augment color_crop_scale --nets 5
  datadistill evaluate runs/adapted --pool pools/mnist-lenet.safetensors
"""


def add_flags(parser: Parser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a .safetensors file, or a run or gallery folder")
    parser.add_argument(
        "--model",
        "--models",
        dest="models",
        metavar="A,B",
        help="other networks than its own, several in one table: names, module:function, net.py:function, timm:NAME",
    )
    add_batch_norm_flag(parser, "as the data was made")
    parser.add_argument(
        "--weights",
        type=one_of("kind of initial weights", ("own", "random-init")),
        metavar="KIND",
        default="own",
        help="own or random-init (default: %(default)s)",
    )
    parser.add_argument(
        "--scheme",
        metavar="NAME",
        help="how fresh networks are drawn: datadistill list schemes (default: as the data was made for)",
    )
    add_pool_flag(parser)
    add_nets_flag(parser)
    add_protocol_flags(parser)
    add_data_flags(parser, "the one it was made from")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the fresh networks (default: %(default)s)")
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--json", action="store_true", help="one JSON document: an object, or a list for several paths")


def run(arguments: argparse.Namespace) -> None:
    device, config = resolve_device(arguments.device), given_config(arguments, given_pool(arguments))
    models: list[str | None] = [name.strip() for name in (arguments.models or "").split(",") if name.strip()] or [None]
    loaded: dict[tuple[str, torch.Size, bool], RealData] = {}
    documents, found = [], []
    for path in arguments.paths:
        distilled = load_distilled(path)
        name = chosen_dataset(arguments.dataset, distilled.provenance.dataset)
        key = (name, distilled.images.shape[1:], distilled.provenance.normalization.zca is not None)
        if key not in loaded:
            loaded[key] = load_data(name, arguments, like=distilled).to(device)
        real = loaded[key]
        for model in models if arguments.protocol != "nearest" else ():
            create_model(chosen_model(model, distilled.provenance.model), real)  # refused before any is trained
        scores = []
        for model in models:
            work = work_of(distilled, config.nets, config.protocol, **config.changes)
            with counting(f"evaluating {path}", work) as count:
                scores.append(evaluate(distilled, real, config, model=model, count=count))
        found.append((path, scores))
        documents.append(score_document(path, real, arguments.protocol, scores))
    if arguments.json:
        print(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2))
    else:
        (_print_crossed if len(models) > 1 else _print)(found, arguments.protocol)


def _print(found: list[tuple[str, list[Score]]], protocol: str) -> None:
    every = [score for _, scores in found for score in scores]
    title, alike = protocol_title(protocol, every), len({score.training for score in every}) == 1
    columns = ["data", "network", "weights", "nets", "before", "test accuracy", "95 % interval", "s"]
    rows = [_row(path, score, "" if alike else score.training) for path, scores in found for score in scores]
    print_table(title, columns, rows)


def _print_crossed(found: list[tuple[str, list[Score]]], protocol: str) -> None:
    """One row for each set, one column for each network."""
    every = [score for _, scores in found for score in scores]
    alike = len({score.training for score in every}) == 1
    nets = sorted({score.nets for score in every})
    title = f"test accuracy, {' or '.join(map(str, nets))} networks each, {protocol_title(protocol, every)}"
    rows = []
    for path, scores in found:
        name = path if alike or not scores[0].training else f"{path}, {scores[0].training}"
        rows.append([name, *(percent(score.accuracy) for score in scores)])
    print_table(title, ["data", *(score.model for score in found[0][1])], rows)


def _row(path: str, score: Score, training: str = "") -> list[str]:
    low, high = score.accuracy.ci95
    return [
        f"{path}, {training}" if training else path,
        score.model,
        score.weights,
        str(score.nets),
        percent(score.before),
        percent(score.accuracy),
        f"{100 * low:.2f} to {100 * high:.2f}",
        f"{score.seconds:.1f}",
    ]

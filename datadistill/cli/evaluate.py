"""evaluate: networks are trained on distilled data and tested on real images."""

import argparse
import json
from typing import Any

import torch

from datadistill.cli.common import (
    add_batch_norm_flag,
    add_data_flags,
    add_nets_flag,
    add_pool_flag,
    chosen_dataset,
    given_pool,
    load_data,
    print_table,
)
from datadistill.cli.parsing import Parser, one_of
from datadistill.data import RealData
from datadistill.distilled import load_distilled
from datadistill.evaluation import NETS, PROTOCOLS, Score, evaluate, percent
from datadistill.progress import counting
from datadistill.runtime import resolve_device, versions

USAGE = "PATH..."
DESCRIPTION = """\
Train networks on distilled data and test them on the real test split.

Data made for one fixed initialisation is judged from the initial weights in its
file; --weights random-init shows what it does for networks it does not know. Data
made for networks of a pool is judged on those that are reserved for judging in the
pool given with --pool, or on all networks of another pool.

examples:
  datadistill evaluate runs/mnist-dd-fixed-init-1
  datadistill evaluate a.safetensors b.safetensors --models lenet,convnet --nets 5
  datadistill evaluate runs/adapted --pool pools/mnist-lenet.safetensors
"""


def add_flags(parser: Parser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a .safetensors file, or a run or gallery folder")
    parser.add_argument(
        "--model",
        "--models",
        dest="models",
        metavar="A,B",
        help="other networks than its own: names, package.module:function, net.py:function, timm:NAME",
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
    parser.add_argument(
        "--protocol",
        type=one_of(PROTOCOLS.kind, PROTOCOLS.names()),
        metavar="NAME",
        default="own",
        help="how networks are trained: " + "; ".join(f"{p.name}: {p.line}" for p in PROTOCOLS),
    )
    add_data_flags(parser, "the one it was made from")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the fresh networks (default: %(default)s)")
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--json", action="store_true", help="one JSON document: an object, or a list for several paths")


def run(arguments: argparse.Namespace) -> None:
    device, pool = resolve_device(arguments.device), given_pool(arguments)
    models: list[str | None] = [name.strip() for name in (arguments.models or "").split(",") if name.strip()] or [None]
    loaded: dict[tuple[str, torch.Size], RealData] = {}
    documents, rows = [], []
    for path in arguments.paths:
        distilled = load_distilled(path)
        name = chosen_dataset(arguments.dataset, distilled.provenance.dataset)
        key = (name, distilled.images.shape[1:])
        if key not in loaded:
            loaded[key] = load_data(name, arguments, like=distilled).to(device)
        real = loaded[key]
        scores = []
        for model in models:
            with counting(f"evaluating {path}", arguments.nets or NETS) as count:
                score = evaluate(
                    distilled,
                    real,
                    model=model,
                    weights=arguments.weights,
                    nets=arguments.nets,
                    protocol=arguments.protocol,
                    seed=arguments.seed,
                    pool=pool,
                    scheme=arguments.scheme,
                    batch_norm=arguments.batch_norm,
                    count=count,
                )
            scores.append(score)
            rows.append(_row(path, score))
        documents.append(_document(path, real, arguments.protocol, scores))
    if arguments.json:
        print(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2))
    else:
        columns = ["data", "network", "weights", "nets", "before", "test accuracy", "95 % interval", "s"]
        print_table(f"protocol {arguments.protocol}", columns, rows)


def _row(path: str, score: Score) -> list[str]:
    low, high = score.accuracy.ci95
    return [
        path,
        score.model,
        score.weights,
        str(score.nets),
        percent(score.before),
        percent(score.accuracy),
        f"{100 * low:.2f} to {100 * high:.2f}",
        f"{score.seconds:.1f}",
    ]


def _document(path: str, real: RealData, protocol: str, scores: list[Score]) -> dict[str, Any]:
    return {
        "path": path,
        "dataset": real.origin,
        "protocol": protocol,
        "results": [score.as_json() for score in scores],
        "chance": 1 / real.num_classes,
        "versions": versions(),
    }

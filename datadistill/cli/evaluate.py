"""evaluate: networks are trained on distilled data and tested on real images."""

import argparse
import json
from collections.abc import Callable, Sequence

import torch

from datadistill.cli.common import (
    Fault,
    accuracy_title,
    add_data_flags,
    add_eval_flags,
    add_run_flag,
    given_config,
    given_models,
    load_data,
    print_faults,
    print_table,
    protocol_title,
    score_cells,
    score_document,
)
from datadistill.cli.parsing import Parser
from datadistill.data import RealData
from datadistill.distilled import DistilledData, load_distilled
from datadistill.engine import Network, network_for
from datadistill.evaluation import EvalConfig, Score, evaluate, percent, work_of
from datadistill.models import model_name, same_model
from datadistill.models.gate import passed
from datadistill.utils.errors import DatadistillError, Interrupted, RequestError
from datadistill.utils.progress import counting, say
from datadistill.utils.runtime import resolve_device

USAGE = "PATH..."
DESCRIPTION = """\
Train networks on distilled data and test them on the real test split.

Data made for one fixed initialisation is judged from the initial weights in its
file; --weights random-init shows what it does for networks it does not know. Data
made for networks of a pool is judged on those that are reserved for judging in the
pool given with --pool, or on all networks of another pool.

Whoever chooses between sets or settings takes --split held_out, so that the test
images have not been asked when the choice is judged.

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
    add_run_flag(parser, "pool")
    add_eval_flags(parser)
    add_data_flags(parser, "the one it was made from")
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--json", action="store_true", help="one JSON document: an object, or a list for several paths")


def run(arguments: argparse.Namespace) -> None:
    device, config = resolve_device(arguments.device), given_config(arguments)
    models = given_models(arguments)
    loaded: dict[tuple[str, torch.Size, bool], RealData] = {}
    documents, found = [], []
    for path in arguments.paths:
        distilled = load_distilled(path)
        name = passed(
            "dataset", arguments.dataset, distilled.provenance.dataset, file=path, data_root=arguments.data_root
        )
        key = (name, distilled.images.shape[1:], distilled.provenance.normalization.zca is not None)
        if key not in loaded:
            loaded[key] = load_data(name, arguments, like=distilled).to(device)
        real = loaded[key]
        faults = faults_of(models, distilled, real, config)
        scores = list[Score | Fault]()
        for model in models:
            if model in faults:
                scores.append(faults[model])
                continue
            work = work_of(distilled, config.nets, config.protocol, **config.changes)
            with counting(f"evaluating {path}", work) as count:
                scores.append(judged(models, distilled, real, config, model, count))
        found.append((path, scores))
        documents.append(score_document(path, real, config.protocol, scores))
    every = [score for _, scores in found for score in scores]
    refuse_if_none_is_judged(every)
    if arguments.json:
        print(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2))
    else:
        (_print_crossed if len(models) > 1 else _print)(found, config.protocol)
    fail_for_faults(every)


def faults_of(
    models: list[str | None], distilled: DistilledData, real: RealData, config: EvalConfig
) -> dict[str | None, Fault]:
    """Faults by network, before any is trained; what is guessed about the others is said.

    Raises:
        RequestError: there is one network only, and something is wrong with it.
    """
    faults = dict[str | None, Fault]()
    for model in models if config.protocol != "nearest" else ():
        own = distilled.provenance
        policy = config.batch_norm or own.batch_norm
        try:
            network = network_for(passed("network", model, own.model), real, real.test.images.device, policy)
        except RequestError as error:
            if len(models) == 1:
                raise
            faults[model] = Fault(str(model), str(error))
            continue
        for remark in (*network.remarks, *_other_network(model, distilled, network, config)):
            say(remark if model is None else f"{model}: {remark}")
    return faults


def _other_network(model: str | None, distilled: DistilledData, network: Network, config: EvalConfig) -> list[str]:
    """A sentence where a network seems to be the data's own by another name."""
    own, start = distilled.provenance.model, distilled.initial_weights
    if model is None or start is None or config.weights != "own" or same_model(model_name(model), own):
        return []
    weights = {**dict(network.module.named_parameters()), **network.constants}
    if {name: weight.shape for name, weight in weights.items()} != {name: w.shape for name, w in start.items()}:
        return []
    return [f"taken for another network than {own}, whose initial weights it could have: fresh ones are drawn"]


def judged(
    models: list[str | None],
    distilled: DistilledData,
    real: RealData,
    config: EvalConfig,
    model: str | None,
    count: Callable[[], None],
) -> Score | Fault:
    """The score of a network, or, in a table of several, why it has none.

    Raises:
        DatadistillError: it is the only network.
    """
    try:
        return evaluate(distilled, real, config, model=model, count=count)
    except Interrupted:
        raise
    except DatadistillError as error:
        if len(models) == 1:
            raise
        return Fault(str(model), str(error))


def refuse_if_none_is_judged(scores: Sequence[Score | Fault]) -> None:
    """Raise the first fault where there is nothing else.

    Raises:
        RequestError: no network could be judged.
    """
    faults = [score for score in scores if isinstance(score, Fault)]
    if faults and len(faults) == len(scores):
        raise RequestError(f"{faults[0].model}: {faults[0].error}")


def fail_for_faults(scores: Sequence[Score | Fault]) -> None:
    """Raise an error of exit code 1 where some networks could not be judged.

    Raises:
        DatadistillError: it names them.
    """
    names = list(dict.fromkeys(score.model for score in scores if isinstance(score, Fault)))
    if names:
        raise DatadistillError(f"{', '.join(names)} could not be judged: the table says why")


def _print(found: list[tuple[str, list[Score | Fault]]], protocol: str) -> None:
    every = [score for _, scores in found for score in scores if isinstance(score, Score)]
    title, alike = protocol_title(protocol, every), len({score.training for score in every}) == 1
    columns = ["data", "network", "weights", "nets", "before", accuracy_title(every), "95 % interval", "s"]
    rows = [
        [f"{path}, {score.training}" if score.training and not alike else path, *score_cells(score)]
        for path, (score, *_) in found
        if isinstance(score, Score)
    ]
    print_table(title, columns, rows)


def _print_crossed(found: list[tuple[str, list[Score | Fault]]], protocol: str) -> None:
    """One row for each set, one column for each network; and one for each network that could not be judged."""
    every = [score for _, scores in found for score in scores if isinstance(score, Score)]
    alike = len({score.training for score in every}) == 1
    nets = sorted({score.nets for score in every})
    title = f"{accuracy_title(every)}, {' or '.join(map(str, nets))} networks each, {protocol_title(protocol, every)}"
    rows, faults = [], dict[str, str]()
    for path, scores in found:
        training = next((score.training for score in scores if isinstance(score, Score)), "")
        name = path if alike or not training else f"{path}, {training}"
        rows.append([name, *("-" if isinstance(score, Fault) else percent(score.accuracy) for score in scores)])
        faults |= {score.model: score.error for score in scores if isinstance(score, Fault)}
    print_table(title, ["data", *(score.model for score in found[0][1])], rows)
    print_faults(faults)

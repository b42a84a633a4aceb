"""audit: what a distilled set from elsewhere does to networks, class by class."""

import argparse
import json
import math
from typing import Any

from datadistill.cli.common import add_data_flags, add_run_flag, load_data, print_table
from datadistill.cli.parsing import Parser, number, positive_int
from datadistill.data import RealData
from datadistill.distilled import DistilledData, load_distilled
from datadistill.engine import Network, Weights, network_for
from datadistill.engine.parallel import map_on_cores
from datadistill.evaluation.audit import APART, SHARE, Audit, audit
from datadistill.models import draw_weights, model_name, same_model
from datadistill.models.gate import passed
from datadistill.training.fit import fit
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.errors import DatadistillError
from datadistill.utils.progress import counting, say, tell
from datadistill.utils.runtime import resolve_device, stream, versions

USAGE = "PATH"
DESCRIPTION = f"""\
Try a distilled set from elsewhere before you use it. Good networks, trained here on
the real dataset, take the set's own steps; fresh ones are trained on the set alone.
A class is suspect if it goes over to one other class: by {SHARE:.0%} of its images or
more, and by {APART:g} times what the median class loses.

Exit code 1 where a class is suspect.

examples:
  datadistill audit stranger.safetensors
  datadistill audit gallery/mnist-fixed-10 --nets 5 --json
"""


def add_flags(parser: Parser) -> None:
    parser.add_argument("path", metavar="PATH", help="a .safetensors file, or a run or gallery folder")
    add_data_flags(parser, "the one it was made from")
    add_run_flag(parser, "model", "its own")
    add_run_flag(parser, "batch_norm", "as it was made")
    parser.add_argument(
        "--nets", type=positive_int, metavar="N", default=10, help="networks of each kind (default: %(default)s)"
    )
    parser.add_argument(
        "--train-epochs",
        type=positive_int,
        metavar="N",
        default=3,
        help="epochs on the real dataset that make a network good (default: %(default)s)",
    )
    parser.add_argument(
        "--train-rate", type=number, metavar="X", default=0.002, help="its learning rate (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the networks (default: %(default)s)")
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(arguments: argparse.Namespace) -> None:
    device = resolve_device(arguments.device)
    distilled = load_distilled(arguments.path).to(device)
    name = passed("dataset", arguments.dataset, distilled.provenance.dataset, data_root=arguments.data_root)
    real = load_data(name, arguments, like=distilled).to(device)
    distilled.check_matches(real)
    model = passed("network", arguments.model, distilled.provenance.model)
    policy = arguments.batch_norm or distilled.provenance.batch_norm
    network = network_for(model, real, device, policy)
    for remark in network.remarks:
        say(remark)
    if same_model(model_name(model), distilled.provenance.model):
        network = network.holding(distilled.initial_weights)
    audits = [
        _try(distilled, real, network, _trained(arguments, real, network), arguments, trained=True),
        _try(distilled, real, network, _fresh(arguments, distilled, network), arguments, trained=False),
    ]
    if arguments.json:
        print(json.dumps(_document(arguments, real, audits), indent=2))
    else:
        for found in audits:
            _print(found)
    suspects = [(found, change) for found in audits for change in found.suspects]
    if suspects:
        found, worst = suspects[0]
        raise DatadistillError(
            f"suspect: {found.networks} networks take {worst.share_after:.0%} of class {worst.name} for class "
            f"{worst.taken_for} after this set's steps, {worst.share_before:.0%} before; do not train on it"
        )
    if not arguments.json:
        tell("No class is suspect.")


def _try(
    distilled: DistilledData,
    real: RealData,
    network: Network,
    starts: list[Weights],
    arguments: argparse.Namespace,
    trained: bool,
) -> Audit:
    with counting("trying it", len(starts)) as count:
        return audit(distilled, real, network, starts, trained=trained, seed=arguments.seed, count=count)


def _trained(arguments: argparse.Namespace, real: RealData, network: Network) -> list[Weights]:
    training = TrainRecipe(epochs=arguments.train_epochs, lr=arguments.train_rate)
    with counting("training good networks", arguments.nets * training.epochs) as count:

        def one(number: int) -> Weights:
            with network.alone:
                start = draw_weights(network.module, "xavier", stream(arguments.seed, "audit-start", number))
            draw = stream(arguments.seed, "audit-training", number)
            return fit(network, start, real.train, training, draw, count)

        return map_on_cores(one, range(arguments.nets), real.test.images.device)


def _fresh(arguments: argparse.Namespace, distilled: DistilledData, network: Network) -> list[Weights]:
    own = distilled.initial_weights
    if own is not None and arguments.model is None:
        return [{name: weight for name, weight in own.items() if name not in network.frozen}]
    scheme = str(distilled.provenance.weights.get("scheme", "xavier"))
    return [
        draw_weights(network.module, scheme, stream(arguments.seed, "audit-fresh", number))
        for number in range(arguments.nets)
    ]


def _print(found: Audit) -> None:
    suspects = {change.name for change in found.suspects}
    rows = [
        [
            change.name,
            f"{100 * change.before:.1f} %",
            f"{100 * change.after:.1f} %",
            f"{change.taken_for}: {100 * change.share_before:.1f} to {100 * change.share_after:.1f} %",
            "SUSPECT" if change.name in suspects else "",
        ]
        if not math.isnan(change.before)
        else [change.name, "-", "-", "no test images", ""]
        for change in found.classes
    ]
    rows.append(["all", f"{100 * found.overall_before:.1f} %", f"{100 * found.overall_after:.1f} %", "", ""])
    title = {
        "trained": f"what it does to {found.nets} trained networks",
        "fresh": f"what it teaches {found.nets} untrained networks (before: an even spread of answers)",
    }[found.networks]
    print_table(title, ["class", "right before", "right after", "taken for, before and after", ""], rows)


def _document(arguments: argparse.Namespace, real: RealData, audits: list[Audit]) -> dict[str, Any]:
    return {
        "path": arguments.path,
        "dataset": real.origin,
        "suspect": any(found.suspects for found in audits),
        "audits": [found.as_json() for found in audits],
        "versions": versions(),
    }

"""import: distilled data of another program becomes a file of ours."""

import argparse
import shlex
import sys
from pathlib import Path

from datadistill.cli.common import add_data_flags, add_run_flag, load_data
from datadistill.cli.parsing import Parser, command_line, number, one_of, positive_int
from datadistill.data import Normalization
from datadistill.distilled import is_format_2
from datadistill.formats import FORMATS, Usage, guess_format, import_from
from datadistill.models import is_code, model_name
from datadistill.training.carried import recipe_of
from datadistill.utils.errors import RequestError
from datadistill.utils.files import check_free
from datadistill.utils.progress import say, tell

USAGE = "PATH"
DESCRIPTION = """\
Read distilled data that another program wrote: datadistill list formats. Nothing in
the file is executed. What the file does not say is taken from --dataset; classes,
image shape or normalisation that differ from the dataset's are refused.

examples:
  datadistill import res_DC_MNIST_ConvNet_10ipc.pt --dataset mnist --rate 0.01 --epochs 300
  datadistill import logged_files/RUN --dataset cifar-10 --renormalize
  datadistill import results.pth --from 2018 --dataset mnist --model lenet
"""


def add_flags(parser: Parser) -> None:
    parser.add_argument("path", metavar="PATH", help="a file or folder")
    parser.add_argument(
        "--from",
        dest="source",
        type=one_of(FORMATS.kind, FORMATS.names()),
        metavar="FORMAT",
        help=f"one of {', '.join(FORMATS.names())} (default: what it looks like)",
    )
    parser.add_argument("--out", metavar="FILE", help="where nothing is yet (default: beside it, as .safetensors)")
    add_data_flags(parser, "none; needed unless the file says everything")
    add_run_flag(parser, "model", "what the format is usually for")
    parser.add_argument("--scheme", metavar="NAME", help="how its weights are drawn (default: as the program draws)")
    parser.add_argument("--rate", type=number, metavar="X", help="learning rate, where the file has none")
    parser.add_argument(
        "--epochs",
        type=positive_int,
        metavar="N",
        default=300,
        help="steps on all images at once, where the file has one rate or none (default: %(default)s)",
    )
    parser.add_argument("--set", type=positive_int, metavar="N", default=1, help="which of several (default: 1)")
    parser.add_argument("--mean", type=number, nargs="+", metavar="X", help="the images' mean, one for each channel")
    parser.add_argument("--std", type=number, nargs="+", metavar="X", help="their standard deviation, likewise")
    parser.add_argument(
        "--labels",
        type=one_of("kind of labels", ("shares", "logits")),
        metavar="KIND",
        help="numbers for each class: shares as the loss takes them, or logits, which a softmax makes shares of "
        "(default: what they look like)",
    )
    parser.add_argument(
        "--renormalize", action="store_true", help="turn another normalisation into the dataset's, not refuse it"
    )
    parser.add_argument("--classes", metavar="A,B", help="class names by index, to be checked against the dataset's")


def run(arguments: argparse.Namespace) -> None:
    path = Path(arguments.path)
    info = guess_format(path) if arguments.source is None else FORMATS.get(arguments.source)
    out = Path(arguments.out or path.resolve().with_suffix(".safetensors"))
    check_free(out)
    usage = Usage(
        model=model_name(arguments.model or info.model),
        scheme=arguments.scheme or info.scheme,
        rate=arguments.rate,
        epochs=arguments.epochs,
        normalization=_normalization(arguments),
        renormalize=arguments.renormalize,
        labels=arguments.labels,
        classes=None if arguments.classes is None else tuple(arguments.classes.split(",")),
    )
    data = import_from(
        path,
        info.name,
        real=None if arguments.dataset is None else load_data(arguments.dataset, arguments),
        usage=usage,
        number=arguments.set,
        recipe=shlex.join(["datadistill", *sys.argv[1:]]) if sys.argv[1:2] == ["import"] else "",
    )
    data.save(out)
    if arguments.labels is None and data.provenance.method.get("labels") == "logits":
        say(
            "the labels do not add up to 1: they are taken for logits, and a softmax makes shares of them; --labels "
            "shares takes them as they are"
        )
    rates, is_bare = data.learning_rates, False
    if is_format_2(data.provenance.inner):
        how = f"trained on by {recipe_of(data)}"
    elif rates is not None:
        how = f"{len(rates)} steps"
    else:
        how, is_bare = "no learning rates: protocol dc judges it", True
    tell(f"{len(data.labels)} images of {list(data.images.shape[1:])}, {how}")
    tell(f"file      {out}")
    # What the file itself calls its network is not for the user to type unread.
    own = [] if arguments.model is None or not is_code(arguments.model) else ["--model", arguments.model]
    words = [*(["--protocol", "dc"] if is_bare else []), *own]
    tell(f"evaluate  {command_line('evaluate', str(out), *words)}")


def _normalization(arguments: argparse.Namespace) -> Normalization | None:
    if arguments.mean is None and arguments.std is None:
        return None
    if arguments.mean is None or arguments.std is None:
        raise RequestError("a normalisation has two parts: give --mean and --std together")
    if not all(0 < value < 1e38 for value in arguments.std) or not all(abs(value) < 1e38 for value in arguments.mean):
        raise RequestError("the numbers of --mean must be finite and those of --std positive")
    return Normalization(tuple(arguments.mean), tuple(arguments.std))

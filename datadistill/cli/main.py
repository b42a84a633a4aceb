"""`datadistill COMMAND`: finds the command, and turns errors into one sentence and an exit code."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from datadistill import __version__
from datadistill.cli import (
    audit,
    baseline,
    check,
    compare,
    completion,
    distill,
    evaluate,
    export,
    import_,
    listing,
    plan,
    pretrain,
    rank,
    report,
    reproduce,
    show,
    watch,
)
from datadistill.cli.common import add_workers_flag
from datadistill.cli.parsing import Parser, command_line
from datadistill.methods.external import register_code
from datadistill.utils import ranks
from datadistill.utils.errors import (
    DatadistillError,
    Interrupted,
    RequestError,
    explain_os_error,
    sentence,
    unknown_name,
)
from datadistill.utils.interrupts import number_of
from datadistill.utils.place import is_started_by_others, place_given
from datadistill.utils.runtime import is_out_of_memory, keep_freed_memory, print_anything

COMMANDS = {
    "distill": distill,
    "audit": audit,
    "baseline": baseline,
    "check": check,
    "evaluate": evaluate,
    "compare": compare,
    "export": export,
    "import": import_,
    "plan": plan,
    "pretrain": pretrain,
    "rank": rank,
    "report": report,
    "reproduce": reproduce,
    "show": show,
    "watch": watch,
    "list": listing,
    "completion": completion,
}

SHARED = ("distill", "baseline", "evaluate", "compare", "pretrain", "rank", "reproduce", "audit")
"""Commands that several ranks do together; rank 0 alone does the others."""

_DESCRIPTION = """\
Dataset distillation: a labelled dataset becomes a handful of synthetic images
that train a network in a few gradient steps.

examples:
  datadistill distill                  MNIST into ten images, one per class
  datadistill evaluate runs/RUN        train on them, test on real images
  datadistill COMMAND --help           all flags of a command
"""


def make_parser(only: str | None = None) -> tuple[Parser, dict[str, Parser]]:
    """The parser, and that of each command by name.

    Args:
        only: the one command whose flags are added; all without it, which takes three to six times as long.
    """
    parser = Parser(prog="datadistill", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"datadistill {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    by_name = {}
    for name, module in COMMANDS.items():
        line = (module.__doc__ or "").splitlines()[0].partition(": ")[2].rstrip(".")
        usage = f"datadistill {name} {module.USAGE} [FLAGS]".replace("  ", " ")
        by_name[name] = commands.add_parser(name, help=line, description=module.DESCRIPTION, usage=usage)
        if only in (None, name):
            module.add_flags(by_name[name])
            if name in SHARED:
                add_workers_flag(by_name[name])
    return parser, by_name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 it ran and failed, 2 the request was wrong, 128 + the signal (130 for Ctrl-C) interrupted.
    """
    keep_freed_memory()
    print_anything()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        is_first = place_given().rank == 0
    except DatadistillError as error:
        return _fail(str(error), error.exit_code)
    if is_first:
        return _run(given)
    with Path(os.devnull).open("w") as unheard, redirect_stdout(unheard), redirect_stderr(unheard):
        return _run(given) if given and given[0].lower() in SHARED else 0


def _run(given: list[str]) -> int:
    """Run one command; the arguments and the exit code are those of `main`."""
    try:
        if not given:
            make_parser()[0].print_help()
            return 0
        given[0] = given[0].lower() if given[0].lower() in COMMANDS else given[0]
        if not given[0].startswith("-") and given[0] not in COMMANDS:
            raise unknown_name("command", given[0], COMMANDS)
        given = _with_methods(given)
        parser, commands = make_parser(given[0] if given[0] in COMMANDS else None)
        parsed, rest = parser.parse_known_args(given)
        (commands[parsed.command] if parsed.command else parser).refuse(rest)
        if getattr(parsed, "workers", None) and is_started_by_others():
            raise RequestError("--workers starts processes, as torchrun and srun do: leave it out under these")
        with ranks.joined() if parsed.command in SHARED else nullcontext():
            COMMANDS[parsed.command].run(parsed)
        if sys.stdout is not None:
            sys.stdout.flush()
    except Interrupted as error:
        return _fail(f"{error}; go on with: {_again(given, parsed, error.folder)}", error.exit_code)
    except ranks.RankLost as error:
        return _fail(f"{error}{'; go on with --resume' if hasattr(parsed, 'resume') else ''}", error.exit_code)
    except DatadistillError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        _print_no_more()
        return _fail("standard output was closed before all was printed; nothing else is lost", 1)
    except OSError as error:
        _print_no_more()
        return _fail(str(explain_os_error(error, "go on")), 1)
    except (MemoryError, OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        return _fail("not enough memory: try fewer images, a smaller --batch or --storage recompute", 1)
    except KeyboardInterrupt as error:
        hint = f"; go on with: {_again(given)}" if given and given[0] in ("pretrain", "reproduce") else ""
        return _fail(f"interrupted{hint}", 128 + number_of(error))
    return 0


def _print_no_more() -> None:
    """Drop what is printed but not written, where it cannot be: Python would complain of it at its end."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _again(given: list[str], parsed: argparse.Namespace | None = None, folder: Path | None = None) -> str:
    """The command that goes on with what was interrupted."""
    if given[0] in ("pretrain", "reproduce"):
        return command_line(*(word for word in given if word != "--resume"), "--resume")
    assert parsed is not None
    assert folder is not None, "a run knows its folder"
    return command_line("distill", *distill.to_go_on(folder, parsed))


def _with_methods(given: list[str]) -> list[str]:
    """The words with each method of the user's own by its name; its code is loaded, so that its flags are known."""
    words = [part for word in given for part in (word.split("=", 1) if word.startswith("--method=") else [word])]
    for place, word in enumerate(words[1:], 1):
        if words[place - 1] == "--method" and ":" in word:
            words[place] = register_code(word).name
    return words


def _fail(text: str, code: int) -> int:
    with suppress(OSError, ValueError, AttributeError):
        print(f"datadistill: {sentence(text)}", file=sys.stderr)
    return code

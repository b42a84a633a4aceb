"""completion: the script by which a shell completes commands, flags and names."""

import argparse

from datadistill.cli.parsing import Parser, one_of

USAGE = "SHELL"
DESCRIPTION = """\
Print the script by which a shell completes the commands, their flags, and the names
that these take.

examples:
  datadistill completion bash > ~/.local/share/bash-completion/completions/datadistill
  datadistill completion zsh > ~/.zfunc/_datadistill     # a folder of $fpath
  datadistill completion fish > ~/.config/fish/completions/datadistill.fish
"""

SHELLS = ("bash", "zsh", "fish")


def add_flags(parser: Parser) -> None:
    parser.add_argument("shell", type=one_of("shell", SHELLS), metavar="SHELL", help=", ".join(SHELLS))


def run(arguments: argparse.Namespace) -> None:
    import shtab

    from datadistill.cli.main import make_parser

    files = {"PATH": shtab.FILE, "FILE": shtab.FILE, "DIR": shtab.DIRECTORY}
    parser, commands = make_parser()
    for command in commands.values():
        for action in command.actions():
            action.choices = getattr(action.type, "names", None)  # for this script: the parser itself asks the type
            if action.metavar in files:
                action.complete = files[str(action.metavar)]  # type: ignore[attr-defined]
    print(shtab.complete(parser, arguments.shell))

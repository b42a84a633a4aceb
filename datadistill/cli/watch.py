"""watch: a run's page in a browser, new at each validation, on this machine only."""

import argparse
from contextlib import suppress
from pathlib import Path

from datadistill.cli.parsing import Parser
from datadistill.distillation.run_folder import RunFolder
from datadistill.report.watch import Watch
from datadistill.utils.errors import RequestError, explain_os_error

USAGE = "RUN"
DESCRIPTION = """\
Serve the page that a run writes into its folder, on the loopback address, and show
each new one while the run goes on. Nothing but the page is served. Ctrl-C ends it.

From another machine: ssh -L 8000:127.0.0.1:8000 HOST, with --port 8000 there.

example:
  datadistill watch runs/RUN
"""


def add_flags(parser: Parser) -> None:
    parser.add_argument("path", metavar="RUN", help="a run folder")
    parser.add_argument(
        "--port", type=int, metavar="N", default=0, help="the port (default: one that is free, as with 0)"
    )


def run(arguments: argparse.Namespace) -> None:
    folder = Path(arguments.path)
    if not RunFolder(folder).exists():
        raise RequestError(f"there is no run in {folder}: give the folder of one, such as runs/RUN")
    if not 0 <= arguments.port < 65536:
        raise RequestError(f"--port is {arguments.port}, but must be from 0 to 65535")
    try:
        server = Watch(folder, arguments.port)
    except OSError as error:
        raise explain_os_error(error, f"listen on port {arguments.port}") from error
    with server, suppress(KeyboardInterrupt):
        print(server.address, flush=True)
        server.serve_forever()

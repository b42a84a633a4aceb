"""`python -m datadistill`, and the program `datadistill`."""

import math
import sys

from datadistill.utils.interrupts import answer_with, leave, number_of, stop
from datadistill.utils.workers import started

if sys.platform != "win32":
    import resource

_LEAST = 768 << 20
"""Bytes of address space without which PyTorch's libraries end the process in ways that cannot be answered."""

_TOO_LITTLE = "a limit, such as that of ulimit -v, leaves too little memory to load PyTorch: raise it"


def _limit() -> float:
    """Bytes of address space that the process may take."""
    if sys.platform == "win32":
        return math.inf
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit


def run_and_exit() -> None:
    """The `datadistill` program."""
    answer_with(leave)
    if _limit() < _LEAST:
        sys.exit(f"datadistill: {_TOO_LITTLE}")
    with started(sys.argv[1:]):
        code = _run()
    sys.exit(code)


def _run() -> int:
    """The command, and its exit code."""
    try:
        from datadistill.cli.main import main  # some seconds, in which nothing is being done yet
    except MemoryError:
        sys.exit(f"datadistill: {_TOO_LITTLE}")
    except (ImportError, OSError) as error:
        if isinstance(error, ImportError) and "allocate memory" not in str(error):
            raise
        sys.exit(f"datadistill: {_TOO_LITTLE if isinstance(error, ImportError) else f'it cannot be loaded: {error}'}")
    try:
        answer_with(stop)
        code = main()
        answer_with(leave)
    except KeyboardInterrupt as error:  # just before the command, or just after it
        leave(number_of(error), None)
    return code


if __name__ == "__main__":
    run_and_exit()

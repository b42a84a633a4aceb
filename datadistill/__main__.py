"""`python -m datadistill`, and the program `datadistill`."""

import sys

from datadistill.utils.interrupts import answer_with, leave, stop


def run_and_exit() -> None:
    """The `datadistill` program."""
    answer_with(leave)
    try:
        from datadistill.cli.main import main  # some seconds, in which nothing is being done yet
    except (ImportError, MemoryError, OSError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        sys.exit("datadistill: not enough memory to load PyTorch: a limit, such as that of ulimit -v, is too low")

    answer_with(stop)
    code = main()
    answer_with(leave)
    sys.exit(code)


if __name__ == "__main__":
    run_and_exit()

"""`python -m datadistill`."""

from datadistill.cli.main import run_and_exit

run_and_exit()

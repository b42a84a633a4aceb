"""How many examples a test of damaged things takes: few in `make test`, many in `make slow`."""

import os

MANY = os.environ.get("DATADISTILL_FUZZ", "0") == "1"


def examples(many: int) -> int:
    """So many where DATADISTILL_FUZZ is 1, otherwise a fifteenth of them."""
    return many if MANY else many // 15

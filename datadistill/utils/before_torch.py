"""Environment of PyTorch, set before it is loaded: how it waits for its threads, which instructions it uses.

It is set when this module is imported, the first of the package; a program that has loaded PyTorch already goes on as
it is, with a warning if that is not what `DATADISTILL_ISA` asks for.
"""

import os
import sys
import warnings

_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""The switches of PyTorch's own operations, of its convolutions and of its matrix products."""

_TURNS = "1000"
"""How often a thread looks for more work before it lets others have its core.

GNU's default is 300,000 times, so that a team keeps cores from the very threads that it waits for. Measured by
`benchmarks/neighbours.py`, on two cores beside two busy processes, where 2 is a fair share: see `docs/engine.md`.
"""


def _prepare() -> None:
    """Set what is not set.

    Raises:
        ValueError: `DATADISTILL_ISA` is neither empty nor `avx2`.
    """
    isa = os.environ.get("DATADISTILL_ISA", "").lower()
    if isa not in ("", "avx2"):
        raise ValueError(f"DATADISTILL_ISA is '{isa}', but can only be avx2, or left out")
    if isa:
        os.environ.update(_AVX2)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _TURNS)


if "torch" not in sys.modules:
    _prepare()
elif os.environ.get("DATADISTILL_ISA"):
    warnings.warn("DATADISTILL_ISA came too late: import datadistill before torch", RuntimeWarning, stacklevel=2)

"""Operations of our own for a CPU: built, measured against PyTorch's, and used where they are right and faster."""

from datadistill.engine.kernels.choice import OPERATIONS, Measured, chosen, parse_kernels
from datadistill.engine.kernels.layers import fitted
from datadistill.engine.kernels.library import build, instruction_set, measured, must_build, prepare, ready

__all__ = [
    "OPERATIONS",
    "Measured",
    "build",
    "chosen",
    "fitted",
    "instruction_set",
    "measured",
    "must_build",
    "parse_kernels",
    "prepare",
    "ready",
]

"""Engine configuration: choices that trade time for memory, and not the result unless they say so."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from datadistill.engine.kernels import parse_kernels
from datadistill.utils.errors import RequestError, unknown_name
from datadistill.utils.fields import Flag, check_numbers

Storage: TypeAlias = Literal["auto", "full", "recompute", "checkpoint", "offload"]
HVPMode: TypeAlias = Literal["auto", "reverse", "forward", "difference"]
Precision: TypeAlias = Literal["float32", "bfloat16"]
Execution: TypeAlias = Literal["auto", "eager", "compiled", "graph"]


@dataclass(frozen=True)
class Engine:
    """Computation of hypergradients; whatever is `auto` or 0 is chosen from a prediction of time and memory.

    Attributes:
        storage: what is kept between the walk forward and the walk back. `full`: every step's graph; `recompute`: every
            step's weights; `checkpoint`: those of every k-th step; `offload`: every step's, in host memory.
        hvp: how Hessian-vector products are computed. `reverse`: reverse over reverse; `forward`: forward over reverse;
            `difference`: two gradients a small step apart, an approximation.
        execution: `eager`; with second derivatives `compiled` by PyTorch's compiler; or the outer step of each network
            replayed as a captured `graph` (CUDA).
        every: with storage checkpoint, steps from one kept position to the next; 0 takes the root of their number.
        inner_chunk: distilled images that are differentiated at a time.
        chunk: real images that are differentiated at a time.
        memory: gigabytes that may be used; 0 takes half of what the device has.
        real_precision: of the real batch's gradient; `bfloat16` is an approximation, faster where the device has it.
        kernels: which of our operations for a CPU take the place of PyTorch's: `auto` (those that were measured here
            to be right and faster), `off`, `all`, or names such as `normalisation,max-pooling`.
    """

    storage: Storage = "auto"
    hvp: HVPMode = field(default="auto", metadata=Flag(was="product").metadata)
    execution: Execution = "auto"
    every: int = 0
    inner_chunk: int = 0
    chunk: int = 0
    memory: float = 0.0
    real_precision: Precision = "float32"
    kernels: str = "auto"

    def __post_init__(self) -> None:
        check_numbers(self, no_less=["every", "inner_chunk", "chunk", "memory"])
        parse_kernels(self.kernels)
        for name, known in (
            ("storage", Storage),
            ("hvp", HVPMode),
            ("execution", Execution),
            ("real_precision", Precision),
        ):
            if getattr(self, name) not in get_args(known):
                raise unknown_name(name, getattr(self, name), get_args(known))
        if self.storage == "full" and self.hvp in ("forward", "difference"):
            raise RequestError(
                f"storage full keeps the graphs of hvp reverse, but hvp is {self.hvp}: "
                "choose storage recompute or checkpoint"
            )

        if self.storage == "full" and self.execution == "compiled":
            raise RequestError(
                "storage full keeps graphs of its own, but the execution is compiled: "
                "choose storage recompute or checkpoint"
            )
        if self.execution == "graph" and (self.storage == "offload" or self.hvp == "difference"):
            what = f"hvp {self.hvp}" if self.hvp == "difference" else f"storage {self.storage}"
            raise RequestError(
                f"execution graph repeats what the device does alone, and {what} needs the host: choose execution eager"
            )

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to be chosen."""
        return "auto" not in (self.storage, self.hvp, self.execution)

    @property
    def can_keep_graphs(self) -> bool:
        """Whether a gradient is differentiated again through its graph, which can be kept for it."""
        return self.hvp == "reverse" and self.execution != "compiled"

    @property
    def is_exact(self) -> bool:
        """Whether the derivative is exact up to rounding."""
        return self.hvp != "difference" and self.real_precision == "float32"

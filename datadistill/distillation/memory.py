"""The fallback when memory runs out: the same work by an engine that needs less."""

from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple, TypeVar

import torch

from datadistill.engine.compiled import forget
from datadistill.engine.config import Engine
from datadistill.engine.functional import Network
from datadistill.engine.planner import Workload, cheaper
from datadistill.utils import ranks
from datadistill.utils.runtime import is_out_of_memory

T = TypeVar("T")


class Fallback(NamedTuple):
    """An engine that is given up step by step.

    Attributes:
        engine: what was planned.
        workload: what it was planned for.
        network: which compiled and captured work belongs to.
        device: whose memory it is.
    """

    engine: Engine
    workload: Workload
    network: Network
    device: torch.device

    def at(self, level: int) -> Engine:
        """Engine with so many choices given up."""
        engine = self.engine
        for _ in range(level):
            engine = cheaper(engine, self.workload) or engine
        return engine

    def run(self, level: int, work: Callable[[Engine], T]) -> tuple[T, int, tuple[str, ...]]:
        """Do some work, and once more with each cheaper engine as long as memory runs out, on whichever rank.

        Args:
            level: how many choices were given up before.
            work: called with an engine; it must be the same work each time.

        Returns:
            What the work gives, how many choices are given up now, and a sentence for each new one.

        Raises:
            MemoryError, RuntimeError: it runs out with the cheapest engine too, or something else went wrong.
        """
        engine, remarks = self.at(level), list[str]()
        while True:
            try:
                with ranks.together():
                    done = work(engine)
                return done, level, tuple(remarks)
            except (MemoryError, RuntimeError) as error:
                following = cheaper(engine, self.workload)
                if not is_out_of_memory(error) or following is None:
                    raise
            forget(self.network)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            changes = [f"{n} {v}" for n, v in asdict(following).items() if v != getattr(engine, n)]
            remarks.append(f"memory ran out with storage {engine.storage}; going on with {', '.join(changes)}.")
            engine, level = following, level + 1

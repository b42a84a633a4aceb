"""A finished run, and what it cost."""

from dataclasses import dataclass
from pathlib import Path

import torch

from datadistill.distilled import DistilledData
from datadistill.training.accuracy import Accuracy
from datadistill.utils import ranks
from datadistill.utils.runtime import peak_memory


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        distilled: the best data by held-out accuracy.
        held_out: its accuracy and loss there.
        steps: outer steps taken.
        seconds: spent on them.
        folder: where the run lies, if it was given a folder.
        remarks: sentences on what went wrong on the way.
    """

    distilled: DistilledData
    held_out: Accuracy
    steps: int
    seconds: float
    folder: Path | None
    remarks: tuple[str, ...]


def with_cost(distilled: DistilledData, seconds: float, steps: int, accuracy: float, at: int) -> DistilledData:
    """The data with what a run cost, and its held-out accuracy at an outer step, in its provenance."""
    device = distilled.images.device
    cost = {
        "seconds": seconds,
        "outer_steps": steps,
        "peak_bytes": peak_memory(device),
        "device": str(device),
        "threads": torch.get_num_threads(),
        **({"ranks": ranks.count()} if ranks.count() > 1 else {}),
    }
    scores = [{"split": "held_out", "accuracy": accuracy, "outer_step": at}]
    return distilled.noted(cost=cost, scores=scores)

"""Runs without an outer loss: distilled data made piece by piece, each of which is kept as soon as it is there."""

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from datadistill.distillation.run_folder import RunFolder
from datadistill.distilled import DistilledData, load_distilled
from datadistill.methods.base import Problem, Synthesis
from datadistill.utils.errors import Interrupted
from datadistill.utils.interrupts import Stopped, StopRequest
from datadistill.utils.progress import Reporter, Status
from datadistill.utils.runtime import peak_memory, stream


def synthesise(
    method: Synthesis, problem: Problem, folder: RunFolder | None, reporter: Reporter, stop: StopRequest
) -> DistilledData:
    """All pieces of a method as one; those that the folder holds already are read.

    Raises:
        Interrupted: Ctrl-C, or another of `SIGNALS`; the pieces that are done lie in the folder.
    """
    pieces, count = list[DistilledData](), method.pieces(problem)
    for number in range(count):
        path = None if folder is None else folder.place("pieces") / f"{number:06d}.safetensors"
        if path is not None and path.is_file():
            pieces.append(_own(load_distilled(path), problem).to(problem.device))
            continue
        began = time.perf_counter()
        piece = joined([method.piece(number, problem, stream(problem.seed, "piece", number))])
        cost = {"seconds": round(time.perf_counter() - began, 3)}
        pieces.append(replace(piece, provenance=replace(piece.provenance, cost=cost)))
        if folder is not None and path is not None:
            folder.check()
            pieces[-1].save(path)
        reporter.update(_status(number + 1, count, pieces, problem.device))
        if stop.requested and number + 1 < count:
            if folder is None:
                raise Stopped(stop.requested)
            what = f"interrupted after piece {number + 1} of {count} and saved"
            raise Interrupted(what, folder.path, stop.requested)
    return joined(pieces)


def _own(piece: DistilledData, problem: Problem) -> DistilledData:
    """A piece as one of this run, whatever its file names: the folder may be anybody's."""
    return replace(piece, provenance=replace(piece.provenance, dataset=problem.real.origin, model=problem.model))


def joined(pieces: Sequence[DistilledData]) -> DistilledData:
    """Pieces one after another, as one batch; the seconds that they took are added up.

    Args:
        pieces: at least one, all with soft labels or none; what else they say is taken from the first.
    """
    first, seconds = pieces[0], sum(piece.provenance.cost.get("seconds", 0.0) for piece in pieces)
    soft = [piece.soft_labels for piece in pieces if piece.soft_labels is not None]
    labels = torch.cat([piece.labels for piece in pieces])
    return replace(
        first,
        images=torch.cat([piece.images for piece in pieces]),
        labels=labels,
        batches=torch.arange(len(labels), device=labels.device).view(1, -1),
        soft_labels=torch.cat(soft) if soft else None,
        provenance=replace(first.provenance, cost={"seconds": round(seconds, 3)}),
    )


def _status(done: int, count: int, pieces: Sequence[DistilledData], device: torch.device) -> Status:
    seconds = sum(piece.provenance.cost["seconds"] for piece in pieces)
    return Status(done, done / count, seconds, loss=None, accuracy=None, rate=None, memory=peak_memory(device))

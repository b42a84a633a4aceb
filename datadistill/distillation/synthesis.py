"""Runs without an outer loss: distilled data made piece by piece, each of which is kept as soon as it is there."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from datadistill.distillation.result import Run, with_cost
from datadistill.distillation.run_folder import RunFolder
from datadistill.distillation.validation import held_out
from datadistill.distilled import FILE_NAME, DistilledData, load_distilled
from datadistill.methods.base import Problem, Synthesis
from datadistill.utils import ranks
from datadistill.utils.errors import DamagedFileError, Interrupted, RequestError, require
from datadistill.utils.interrupts import Stopped, StopRequest
from datadistill.utils.progress import Reporter, Status
from datadistill.utils.runtime import peak_memory, stream, versions


def synthesise(
    method: Synthesis,
    problem: Problem,
    folder: RunFolder | None,
    command: str,
    reporter: Reporter,
    stop: StopRequest,
) -> Run:
    """A run of a method without an outer loss; pieces that the folder holds already are read.

    Raises:
        Interrupted: Ctrl-C, or another of `SIGNALS`; the pieces that are done lie in the folder.
    """
    distilled = joined(_pieces(method, problem, folder, reporter, stop))
    accuracy, count = held_out(problem, distilled), method.pieces(problem)
    seconds = distilled.provenance.cost["seconds"]
    distilled = with_cost(distilled, seconds, 0, accuracy.correct, count).noted(recipe=command, versions=versions())
    if folder is not None:
        distilled.save(folder.place(FILE_NAME))
    return Run(distilled, accuracy, count, seconds, folder.path if folder else None, ())


def _pieces(
    method: Synthesis, problem: Problem, folder: RunFolder | None, reporter: Reporter, stop: StopRequest
) -> list[DistilledData]:
    """All pieces of a method; each is saved as soon as it is there."""
    pieces, count = list[DistilledData](), method.pieces(problem)
    for number in range(count):
        path = None if folder is None else folder.place("pieces") / f"{number:06d}.safetensors"
        saved = ranks.from_first(partial(_saved, path, pieces, problem, reporter) if path else lambda: None)
        if saved is not None:
            pieces.append(saved)
            continue
        began = time.perf_counter()
        piece = joined([method.piece(number, problem, stream(problem.seed, "piece", number))])
        cost = {"seconds": round(time.perf_counter() - began, 3)}
        pieces.append(piece.noted(cost=cost))
        if folder is not None and path is not None:
            folder.check()
            pieces[-1].save(path)
        reporter.update(_status(number + 1, count, pieces, problem.device))
        if stop.requested and number + 1 < count:
            if folder is None:
                raise Stopped(stop.requested)
            what = f"interrupted after piece {number + 1} of {count} and saved"
            raise Interrupted(what, folder.path, stop.requested)
    return pieces


def _saved(path: Path, before: Sequence[DistilledData], problem: Problem, reporter: Reporter) -> DistilledData | None:
    """A piece from the folder, as one of this run; None where there is none, or it is damaged and must be made again.

    The folder may be anybody's: what its files name is not used, and what does not fit the dataset or the pieces before
    it is damage.
    """
    if not path.is_file():
        return None
    try:
        piece = load_distilled(path).to(problem.device)
        piece.check_matches(problem.real)
        seconds = piece.provenance.cost.get("seconds")
        require(isinstance(seconds, int | float) and 0 <= seconds < math.inf, "it does not say how long it took")
        has_soft = {one.soft_labels is not None for one in (piece, *before)}
        require(len(has_soft) == 1, "its labels are of another kind than those of the pieces before it")
    except (DamagedFileError, RequestError) as error:
        reporter.say(f"piece {path.stem} is damaged and made again: {error}")
        return None
    return piece.noted(dataset=problem.real.origin, model=problem.model)


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

"""Runs of methods without an outer loss: pieces, which are kept as soon as they are there."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import datadistill as dd
from datadistill.methods import Problem
from datadistill.methods.judging import judged_by_protocol
from datadistill.report.card import make_card
from datadistill.utils.errors import RequestError


@dataclass(frozen=True)
class Noise:
    """A piece of noise for each class."""

    name: str = "noise"

    def resolve(self, problem: Problem) -> "Noise":
        return self

    def pieces(self, problem: Problem) -> int:
        return problem.real.num_classes

    def piece(self, number: int, problem: Problem, generator: torch.Generator) -> dd.DistilledData:
        whole = judged_by_protocol(problem, "noise", generator, self.name, {}, "none")
        mine = whole.labels == number
        return replace(whole, images=whole.images[mine], labels=whole.labels[mine])


class Stop(Exception):
    pass


class StopAt:
    def __init__(self, step: int) -> None:
        self.step, self.steps, self.said = step, list[int](), list[str]()

    def update(self, status: Any) -> None:
        self.steps.append(status.step)
        if status.step == self.step:
            raise Stop

    def say(self, text: str) -> None:
        self.said.append(text)


def run(real: dd.RealData, **options: Any) -> dd.Run:
    return dd.distill(real, Noise(), model="ConvNetD1W4", weights="random-init", ipc=2, iterations=1, **options)


def test_pieces_are_kept_and_not_made_again(digits: dd.RealData, tmp_path: Path) -> None:
    whole = run(digits)
    with pytest.raises(Stop):
        run(digits, out=tmp_path / "run", reporter=StopAt(4))
    rest = StopAt(99)
    resumed = run(digits, out=tmp_path / "run", resume=True, reporter=rest)
    assert rest.steps == [5, 6, 7, 8, 9, 10]
    assert torch.equal(whole.distilled.images, resumed.distilled.images)
    assert resumed.distilled.labels.bincount().tolist() == [2] * 10
    assert resumed.distilled.batches.tolist() == [list(range(20))]
    assert make_card(resumed.distilled, dd.evaluate(resumed.distilled, digits, nets=1), "run")
    assert dd.load_distilled(tmp_path / "run").provenance.scores[0]["accuracy"] == resumed.held_out.correct
    with pytest.raises(RequestError, match="holds a run already"):
        run(digits, out=tmp_path / "run")


def test_pieces_of_strangers_name_nothing(digits: dd.RealData, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(digits, out=tmp_path / "run", reporter=StopAt(4))
    path = tmp_path / "run/pieces/000000.safetensors"
    piece = dd.load_distilled(path)
    replace(piece, provenance=replace(piece.provenance, model="evil.py:f", dataset="hf:evil/evil")).save(path)
    resumed = run(digits, out=tmp_path / "run", resume=True).distilled
    assert resumed.provenance.model == "convnetd1w4"
    assert resumed.provenance.dataset == "digits"


@pytest.mark.parametrize("kind", ["cut", "another's", "no seconds"])
def test_a_damaged_piece_is_made_again(kind: str, digits: dd.RealData, tmp_path: Path) -> None:
    whole = run(digits)
    with pytest.raises(Stop):
        run(digits, out=tmp_path / "run", reporter=StopAt(4))
    path = tmp_path / "run/pieces/000001.safetensors"
    piece = dd.load_distilled(path)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif kind == "another's":
        replace(piece, images=piece.images[..., :4]).save(path)
    else:
        replace(piece, provenance=replace(piece.provenance, cost={"seconds": "long"})).save(path)
    rest = StopAt(99)
    resumed = run(digits, out=tmp_path / "run", resume=True, reporter=rest)
    assert rest.steps == [2, 5, 6, 7, 8, 9, 10]
    assert torch.equal(whole.distilled.images, resumed.distilled.images)
    assert [text.split(":")[0] for text in rest.said] == ["piece 000001 is damaged and made again"]

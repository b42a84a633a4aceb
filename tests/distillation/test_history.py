"""A run keeps some moments of its images: few, small, and gone again where the run went back."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import datadistill as dd
from datadistill.distillation.history import (
    BYTES,
    HISTORY_NAME,
    MOMENTS,
    EightBit,
    first_of_each_class,
    load_history,
    remember,
    rewind_history,
    thinned,
)
from datadistill.utils.files import read_tensors, write_tensors
from datadistill.utils.runtime import stream

QUICK = dd.Outer(lr=0.03, betas=(0.5, 0.99), eval_every=10)


@pytest.fixture(scope="module")
def ten(digits: dd.RealData) -> dd.DistilledData:
    return dd.distill(digits, dd.methods.DD(images="mean", batch=64), model="mlp", iterations=1, device="cpu").distilled


def shown(images: EightBit) -> Tensor:
    span = (images.high - images.low)[..., None, None, None]
    return images.low[..., None, None, None] + images.levels * span / 255


def many(ten: dd.DistilledData, count: int, size: int) -> dd.DistilledData:
    images = torch.randn(count, 3, size, size, generator=stream(0))
    provenance = replace(ten.provenance, normalization=dd.data.Normalization((0.0,) * 3, (1.0,) * 3))
    return replace(ten, images=images, labels=torch.arange(count) % 10, provenance=provenance)


def test_a_run_keeps_its_images_from_the_start(digits: dd.RealData, tmp_path: Path) -> None:
    method = dd.methods.DD(images="mean", batch=64)
    folder = tmp_path / "run"
    run = dd.distill(digits, method, model="mlp", iterations=40, outer=QUICK, device="cpu", out=folder)
    history = load_history(folder)
    assert history is not None
    assert history.steps.tolist() == [0, 10, 20, 30, 40]
    assert history.chosen.tolist() == list(range(10))
    pixels = run.distilled.pixels()
    closest = min((shown(history.images)[moment] - pixels).abs().max().item() for moment in range(5))
    assert closest < 0.02
    assert not torch.equal(history.images.levels[0], history.images.levels[-1])


def test_eight_bits_hold_every_image_in_its_own_range() -> None:
    pixels = torch.randn(4, 3, 8, 8, generator=stream(0)) * torch.tensor([0.01, 1.0, 0.3, 0.0]).view(4, 1, 1, 1)
    found = EightBit.of(pixels)
    seen = pixels.flatten(1).clamp(found.low[:, None], found.high[:, None]).view_as(pixels)
    assert ((shown(found) - seen).abs().flatten(1).amax(1) <= (found.high - found.low) / 500 + 1e-7).all()
    assert (seen - pixels).abs().flatten(1).amax(1).tolist()[2:] == [0, 0]


def test_thinning_keeps_the_ends_and_is_even() -> None:
    kept: list[int] = []
    for step in range(0, 10000, 100):
        kept.append(step)
        kept = [kept[place] for place in thinned(kept, MOMENTS)]
    assert len(kept) == MOMENTS
    assert (kept[0], kept[-1]) == (0, 9900)
    gaps = [after - before for before, after in itertools.pairwise(kept)]
    assert max(gaps) <= 4 * 9900 / MOMENTS


@pytest.mark.parametrize(("count", "size"), [(10, 8), (100, 32), (1000, 32), (10, 512)])
def test_the_size_is_bounded(count: int, size: int, ten: dd.DistilledData, tmp_path: Path) -> None:
    data = many(ten, count, size)
    for step in range(30):
        remember(tmp_path, step, data)
    history = load_history(tmp_path)
    assert history is not None or 3 * size * size * 8 > BYTES
    if history is not None:
        assert 8 <= len(history.steps) <= MOMENTS
        assert history.steps[0] == 0
        assert history.steps[-1] == 29
        assert (tmp_path / HISTORY_NAME).stat().st_size < BYTES + 20000


def test_classes_take_turns() -> None:
    assert first_of_each_class(torch.tensor([0, 0, 0, 1, 1, 2]), 4).tolist() == [0, 1, 3, 5]
    assert first_of_each_class(torch.tensor([0, 0]), 0).tolist() == []


def test_a_run_that_goes_back_forgets(ten: dd.DistilledData, tmp_path: Path) -> None:
    for step in (0, 10, 20, 30, 20):
        remember(tmp_path, step, ten)
    history = load_history(tmp_path)
    assert history is not None
    assert history.steps.tolist() == [0, 10, 20]
    rewind_history(tmp_path, 10)
    history = load_history(tmp_path)
    assert history is not None
    assert history.steps.tolist() == [0, 10]
    rewind_history(tmp_path, -1)
    assert load_history(tmp_path) is None


@pytest.mark.parametrize("name", ["steps", "chosen", "levels", "low", "high"])
def test_what_cannot_be_read_is_no_history(name: str, ten: dd.DistilledData, tmp_path: Path) -> None:
    remember(tmp_path, 0, ten)
    whole, _ = read_tensors(tmp_path / HISTORY_NAME)
    for spoiled in (None, whole[name][:0], whole[name].double(), whole[name][None], whole[name] * 0 - 1):
        changed = {other: tensor for other, tensor in whole.items() if other != name or spoiled is not None}
        write_tensors(tmp_path / HISTORY_NAME, changed | ({} if spoiled is None else {name: spoiled}), {})
        found = load_history(tmp_path)
        assert found is None or name in ("levels", "low", "high")
        remember(tmp_path, 1, ten)
        assert load_history(tmp_path) is not None
        (tmp_path / HISTORY_NAME).unlink()
    (tmp_path / HISTORY_NAME).write_bytes(b"nothing")
    assert load_history(tmp_path) is None

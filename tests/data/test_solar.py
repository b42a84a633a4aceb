"""Photographs of solar cells, where their package is installed."""

import sys

import pytest
import torch

import datadistill as dd
from datadistill.utils.errors import RequestError


def test_without_its_package_the_sentence_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "elpv_dataset.utils", None)
    with pytest.raises(RequestError, match="install elpv-dataset"):
        dd.load("solar-cells")


@pytest.mark.slow
def test_the_splits() -> None:
    pytest.importorskip("elpv_dataset", reason="elpv-dataset is not installed (extra solar)")
    real = dd.load("solar-cells")
    assert real.classes == ("functional", "defective")
    assert (real.in_channels, real.image_size) == (1, 64)
    counts = real.train.counts + real.held_out.counts + real.test.counts
    assert counts.tolist() == [1803, 821]
    assert len(real.test) == 2624 // 5
    again = dd.load("solar-cells")
    assert torch.equal(real.test.images, again.test.images)
    # The same photograph is in one split only.
    seen = [image.numpy().tobytes() for split in (real.train, real.held_out, real.test) for image in split.images]
    assert len(set(seen)) == len(seen)

from dataclasses import replace

import pytest
import torch
from PIL import ImageChops

import datadistill as dd
from datadistill.report.sheet import draw_sheet, viewable
from datadistill.utils.runtime import stream


def test_viewable_spreads_every_image() -> None:
    images = torch.randn(3, 1, 8, 8, generator=stream(0)) * torch.tensor([0.01, 1.0, 100.0]).view(3, 1, 1, 1)
    shown = viewable(images)
    assert shown.min() >= 0
    assert shown.max() <= 1
    assert torch.allclose(shown[0], viewable(images[:1] * 7 + 3)[0], atol=1e-4)
    assert (viewable(torch.ones(1, 1, 4, 4)) == 0.5).all()


@pytest.mark.parametrize(("classes", "ipc"), [(3, 1), (10, 2), (23, 1), (2, 20)])
def test_every_image_is_on_the_sheet(digits: dd.RealData, classes: int, ipc: int) -> None:
    run = dd.distill(digits, model="mlp", iterations=1, device="cpu").distilled
    names = tuple(f"class {label}" for label in range(classes))
    images = torch.randn(classes * ipc, 3, 8, 8, generator=stream(1))
    labels = torch.arange(classes).repeat(ipc)
    provenance = replace(run.provenance, classes=names, normalization=dd.data.Normalization((0.0,) * 3, (1.0,) * 3))
    data = replace(run, images=images, labels=labels, provenance=provenance)
    whole = draw_sheet(data)
    for index in range(len(images)):
        changed = images.clone()
        changed[index] = changed[index].flip(-1)
        assert ImageChops.difference(whole, draw_sheet(replace(data, images=changed))).getbbox() is not None

"""Augmentation chosen by how well real images teach with it."""

from dataclasses import replace

import pytest
import torch

import datadistill as dd
from datadistill.engine import make_network
from datadistill.experiments import augmentation
from datadistill.experiments.augmentation import COLOUR, GREY, candidates, epochs_within, try_augmentations
from datadistill.models import create_model


def coloured(real: dd.RealData) -> dd.RealData:
    return replace(real, train=replace(real.train, images=real.train.images.expand(-1, 3, -1, -1)))


def test_grey_images_are_not_mirrored_and_coloured_ones_are(digits: dd.RealData) -> None:
    assert candidates(digits) == GREY
    assert candidates(coloured(digits)) == COLOUR
    assert not any("flip" in name for name in GREY)
    assert all("flip" in name for name in COLOUR)
    assert GREY[0] == "color_crop_cutout_scale_rotate"


def test_epochs_go_by_the_time(digits: dd.RealData) -> None:
    networks = augmentation.NETS * len(GREY)
    assert epochs_within(networks * 20 * 50 * 1e-3, 1e-3, digits, [2] * 10) == 50
    assert epochs_within(1e6, 1e-3, digits, [2] * 10) == 1000
    assert epochs_within(1e-6, 1e-3, digits, [2] * 10) == 0


def test_what_spoils_the_images_is_not_the_best(digits: dd.RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits turned by up to 45 degrees and mirrored teach worse than digits that are moved a little."""
    monkeypatch.setattr(augmentation, "GREY", ("flip+rotate45+scale", "crop"))
    calls = list[int]()
    network = make_network(create_model("ConvNetD1W8", digits))
    tried = try_augmentations(network, digits, [3] * 10, epochs=60, count=lambda: calls.append(1))
    assert tried.best == "crop"
    assert tried.accuracies["crop"] > tried.accuracies["flip+rotate45+scale"] > 0.3
    assert len(calls) == 2 * augmentation.NETS
    again = try_augmentations(network, digits, [3] * 10, epochs=60)
    assert again == tried
    assert try_augmentations(network, digits, [3] * 10, epochs=60, seed=1) != tried


def test_it_is_the_same_with_any_number_of_threads(digits: dd.RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "GREY", ("crop", "warp10"))
    network = make_network(create_model("ConvNetD1W8", digits))
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(try_augmentations(network, digits, [1] * 10, epochs=5))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]

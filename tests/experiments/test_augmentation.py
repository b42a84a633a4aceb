"""Augmentation chosen by how well a set teaches with it."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked import in_ranks

import datadistill as dd
from datadistill.baselines import RandomReal
from datadistill.engine import Network, make_network
from datadistill.experiments import augmentation
from datadistill.experiments.augmentation import (
    COLOUR,
    GREY,
    Tried,
    candidates,
    epochs_within,
    recipes_of,
    try_recipes,
)
from datadistill.models import create_model
from datadistill.training.recipe import TrainRecipe


@pytest.fixture
def few(digits: dd.RealData) -> dd.DistilledData:
    """Three random digits of each class."""
    how = {"model": "ConvNetD1W8", "weights": "random-init", "ipc": 3, "iterations": 1, "device": "cpu"}
    return dd.distill(digits, RandomReal(), **how).distilled  # type: ignore[arg-type]


@pytest.fixture
def network(digits: dd.RealData) -> Network:
    return make_network(create_model("ConvNetD1W8", digits))


def recipes(data: dd.DistilledData, epochs: int) -> dict[str, TrainRecipe]:
    return recipes_of(data, augmentation.GREY, epochs)


def test_grey_images_are_not_mirrored_and_coloured_ones_are(digits: dd.RealData) -> None:
    assert candidates(digits) == GREY
    colour = replace(digits, train=replace(digits.train, images=digits.train.images.expand(-1, 3, -1, -1)))
    assert candidates(colour) == COLOUR
    assert not any("flip" in name for name in GREY)
    assert all("flip" in name for name in COLOUR)
    assert GREY[0] == "color_crop_cutout_scale_rotate"


def test_epochs_go_by_the_time(digits: dd.RealData, network: Network) -> None:
    assert epochs_within(1e6, network, digits, 20) == 1000
    assert epochs_within(1e-6, network, digits, 20) < 0


def test_a_signal_ends_it_at_once(
    digits: dd.RealData, few: dd.DistilledData, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augmentation, "GREY", ("crop", "warp10"))
    done = list[int]()

    def stop() -> None:
        done.append(1)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        try_recipes(network, few, digits, recipes(few, 10), count=stop)
    assert len(done) < 2 * augmentation.NETS


def test_what_spoils_the_images_is_not_the_best(
    digits: dd.RealData, few: dd.DistilledData, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digits that are mirrored and turned by up to 45 degrees teach worse than digits that are moved a little."""
    monkeypatch.setattr(augmentation, "GREY", ("flip+rotate45", "crop"))
    calls = list[int]()
    tried = try_recipes(network, few, digits, recipes(few, 60), count=lambda: calls.append(1))
    assert Tried(tried).best == "crop"
    assert tried["crop"] > tried["flip+rotate45"] > 0.3
    assert len(calls) == 2 * augmentation.NETS
    assert try_recipes(network, few, digits, recipes(few, 60)) == tried
    assert try_recipes(network, few, digits, recipes(few, 60), seed=1) != tried


def test_threads_and_ranks_make_no_difference(
    digits: dd.RealData, few: dd.DistilledData, network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(augmentation, "GREY", ("crop", "warp10"))
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(try_recipes(network, few, digits, recipes(few, 5)))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]

    def shares() -> torch.Tensor:
        return torch.tensor([*try_recipes(network, few, digits, recipes(few, 5)).values()])

    for values in in_ranks(2, shares, tmp_path):
        assert values.tolist() == pytest.approx(list(found[0].values()))


def test_networks_are_trained_for_as_long_as_is_best() -> None:
    accuracies = {"crop": 0.25, "warp10": 0.5}
    for longer, epochs, correct in ((None, 300, 0.5), (0.4, 300, 0.5), (0.5, 1000, 0.5), (0.6, 1000, 0.6)):
        tried = Tried(accuracies, 300, longer)
        assert (tried.best, tried.best_epochs, tried.correct) == ("warp10", epochs, correct)

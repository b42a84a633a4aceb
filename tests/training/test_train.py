"""Ordinary training."""

import copy
from typing import Any

import pytest
import torch

import datadistill as dd
from datadistill.engine import make_network
from datadistill.evaluation import accuracy_of
from datadistill.models import create_model, draw_weights
from datadistill.training.train import Training, train
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream


def test_it_learns_and_repeats_itself(digits: dd.RealData) -> None:
    network = make_network(create_model("mlp", digits))
    start = draw_weights(network.module, "xavier", stream(0))
    before = {name: weight.clone() for name, weight in start.items()}
    epochs: list[None] = []
    training = Training(epochs=8, rate=0.003, batch=64)
    first = train(
        network, start, digits.train.images, digits.train.labels, training, stream(1), lambda: epochs.append(None)
    )
    assert len(epochs) == 8
    assert accuracy_of(network, first, digits.held_out).correct > 0.93
    assert all(torch.equal(before[name], weight) for name, weight in start.items())
    second = train(network, start, digits.train.images, digits.train.labels, training, stream(1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_sgd_with_everything_is_torch_s(digits: dd.RealData) -> None:
    module = create_model("mlp", digits)
    network, few = make_network(module), digits.train.take(torch.arange(64))
    start = draw_weights(module, "xavier", stream(0))
    training = Training(
        epochs=5, rate=0.05, batch=64, optimizer="sgd", momentum=0.9, weight_decay=0.01, falls="constant"
    )
    mine = train(network, start, few.images, few.labels, training, stream(1))
    theirs = copy.deepcopy(module)
    theirs.load_state_dict(start)
    descent = torch.optim.SGD(theirs.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    for _ in range(5):
        descent.zero_grad()
        torch.nn.functional.cross_entropy(theirs(few.images), few.labels).backward()
        descent.step()
    for name, weight in theirs.named_parameters():
        assert torch.allclose(mine[name], weight, atol=1e-5)


def test_augmentation_changes_training_and_the_seed_decides(digits: dd.RealData) -> None:
    module = create_model("mlp", digits)
    network, few = make_network(module), digits.train.take(torch.arange(64))
    start = draw_weights(module, "xavier", stream(0))

    def trained(augment: str) -> torch.Tensor:
        training = Training(epochs=2, batch=32, augment=augment)
        return next(iter(train(network, start, few.images, few.labels, training, stream(1)).values()))

    assert torch.equal(trained("crop_color"), trained("crop_color"))
    assert not torch.equal(trained("crop_color"), trained("none"))


def test_what_is_as_usual_is_not_written() -> None:
    assert Training().known() == {"epochs": 5, "rate": 0.001, "batch": 128}
    assert Training(optimizer="sgd", momentum=0.5).known()["momentum"] == 0.5


@pytest.mark.parametrize(
    "options",
    [{"momentum": 0.5}, {"weight_decay": -1.0}, {"augment": "turn"}],
    ids=str,
)
def test_wrong_trainings(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        Training(**options)

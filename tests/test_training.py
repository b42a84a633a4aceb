"""Ordinary training."""

import torch

import datadistill as dd
from datadistill.evaluation import accuracy_of
from datadistill.inner import make_network
from datadistill.models import create_model, draw_weights
from datadistill.runtime import stream
from datadistill.training import Training, train


def test_it_learns_and_repeats_itself(digits: dd.RealData) -> None:
    network = make_network(create_model("mlp", digits))
    start = draw_weights(network.module, "xavier", stream(0))
    before = {name: weight.clone() for name, weight in start.items()}
    epochs: list[None] = []
    training = Training(epochs=8, rate=0.003, batch=64)
    first = train(network, start, digits.train, training, stream(1), lambda: epochs.append(None))
    assert len(epochs) == 8
    assert accuracy_of(network, first, digits.held_out).correct > 0.93
    assert all(torch.equal(before[name], weight) for name, weight in start.items())
    second = train(network, start, digits.train, training, stream(1))
    assert all(torch.equal(first[name], second[name]) for name in first)

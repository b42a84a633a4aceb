"""Testing a network on a split."""

import pytest
import torch

import datadistill as dd
from datadistill.engine import make_network
from datadistill.evaluation import accuracy_of
from datadistill.models import create_model, draw_weights
from datadistill.training.accuracy import _pieces, confusion_of
from datadistill.utils.runtime import stream


@pytest.mark.parametrize(("model", "kinds"), [("ConvNetD1W16BN", range(6, 11)), ("ConvNetD1W16", range(1, 4))])
def test_a_split_may_lie_class_by_class(
    digits: dd.RealData, model: str, kinds: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With batch normalisation an image's answer depends on its batch, which must not be of one class."""
    monkeypatch.setattr("datadistill.training.accuracy._BATCH", 30)
    network = make_network(create_model(model, digits))
    split = digits.test.take(digits.test.labels.argsort(stable=True))
    batches = [labels for _, labels in _pieces(network, split)]
    assert all(len(labels.unique()) in kinds for labels in batches)
    assert {len(labels) for labels in batches} <= {len(split) // 12, len(split) // 12 + 1}
    assert torch.equal(torch.cat(batches).sort().values, split.labels)
    weights = draw_weights(network.module, "default", stream(0))
    right = (confusion_of(network, weights, split).diagonal() * split.counts).sum() / len(split)
    assert float(right) == pytest.approx(accuracy_of(network, weights, split).correct)

"""Losses against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from datadistill.engine import Loss
from datadistill.utils.runtime import stream

SCORES = torch.randn(5, 4, generator=stream(0), dtype=torch.float64)
SOFT = torch.rand(5, 4, generator=stream(1), dtype=torch.float64).softmax(1)
HARD = torch.tensor([0, 3, 1, 1, 2])


def test_soft_labels_are_the_targets() -> None:
    assert torch.equal(Loss()(SCORES, SOFT), F.cross_entropy(SCORES, SOFT))
    assert torch.allclose(Loss("mse")(SCORES, SOFT), F.mse_loss(SCORES, SOFT), rtol=1e-12)
    expected = 9 * F.kl_div((SCORES / 3).log_softmax(1), SOFT, reduction="batchmean")
    assert float(Loss("kl", 3.0)(SCORES, SOFT)) == pytest.approx(float(expected), rel=1e-12)


def test_class_indices_are_one_hot() -> None:
    one_hot = F.one_hot(HARD, 4).double()
    for loss in (Loss(), Loss("mse"), Loss("kl", 2.0)):
        assert float(loss(SCORES, HARD)) == pytest.approx(float(loss(SCORES, one_hot)), rel=1e-12)


@pytest.mark.parametrize("loss", [Loss(), Loss("mse"), Loss("kl", 2.0)], ids=str)
def test_learned_labels_may_be_any_numbers(loss: Loss) -> None:
    leaf = SCORES.clone().requires_grad_()
    loss(leaf, SOFT - 1).backward()
    assert leaf.grad is not None
    assert bool(leaf.grad.isfinite().all())

"""The kept networks are those that the code trains today."""

from pathlib import Path

import pytest
import torch
import trained

import datadistill as dd

# Processors round differently: with the widest and the narrowest instructions of one of them, weights differed by
# 0.0001 here and 0.00002 there. Without its last epoch, or with another seed, they differ by 0.01 and more.
TOLERANCE = 1e-3


@pytest.mark.slow
def test_the_pool_is_what_training_gives(digits: dd.RealData, pool: dd.Pool, tmp_path: Path) -> None:
    made = trained.make_pool(digits, tmp_path / "pool")
    assert made.stacked.keys() == pool.stacked.keys()
    for name, stack in made.stacked.items():
        assert torch.allclose(stack.float(), pool.stacked[name].float(), rtol=0, atol=TOLERANCE), name
    assert made.facts.accuracies == pytest.approx(pool.facts.accuracies, abs=0.02)
    known, kept = made.facts.known(), pool.facts.known()
    for name in known.keys() - set(made.facts.MEASURED) - {"accuracies"}:
        assert known[name] == kept[name], name


@pytest.mark.slow
def test_the_experts_are_what_training_gives(
    digits: dd.RealData, trajectories: dd.Trajectories, tmp_path: Path
) -> None:
    made = trained.make_experts(digits, tmp_path / "experts")
    assert len(made) == len(trajectories)
    for one, other in zip(made.experts, trajectories.experts, strict=True):
        for epoch in range(made.epochs + 1):
            weights, kept = one.weights(epoch), other.weights(epoch)
            assert weights.keys() == kept.keys()
            assert all(torch.allclose(weights[n], kept[n], rtol=0, atol=TOLERANCE) for n in weights), epoch
    known, kept_facts = made.facts.known(), trajectories.facts.known()
    for name in known.keys() - set(made.facts.MEASURED) - {"digests"}:
        assert known[name] == kept_facts[name], name

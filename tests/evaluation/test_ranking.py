import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from datadistill.evaluation import (
    AugmentationRobustScore,
    LabelRobustScore,
    average_over_augmentations,
    average_over_transfer,
    best_over_augmentations,
)
from datadistill.utils.errors import RequestError

AT_ZERO = 0.268941421
"""(1 - 1/e) / (e - 1/e) = 1 / (e + 1)."""


def test_label_robust_score_by_hand() -> None:
    found = LabelRobustScore(real_hard=0.85, syn_hard=0.45, syn_own=0.65, random_own=0.35)
    assert found.hard_label_recovery == pytest.approx(0.40)
    assert found.improvement_over_random == pytest.approx(0.30)
    assert found.alpha == pytest.approx(-0.05)
    # (0.951229425 - 0.367879441) / 2.350402387
    assert found.score == pytest.approx(0.248191538, abs=1e-8)


def test_the_weight_is_that_of_the_improvement_over_random() -> None:
    facts = {"real_hard": 0.85, "syn_hard": 0.45, "syn_own": 0.65, "random_own": 0.35}
    assert LabelRobustScore(**facts, weight=1.0).alpha == pytest.approx(0.30)
    assert LabelRobustScore(**facts, weight=0.0).alpha == pytest.approx(-0.40)
    assert LabelRobustScore(**facts, weight=0.8).alpha == pytest.approx(0.16)


def test_augmentation_robust_score_by_hand() -> None:
    found = AugmentationRobustScore(syn_augmented=0.7, random_augmented=0.4, syn_plain=0.5, random_plain=0.4)
    assert found.beta == pytest.approx(0.2)
    # (1.221402758 - 0.367879441) / 2.350402387
    assert found.score == pytest.approx(0.363139232, abs=1e-8)
    assert AugmentationRobustScore(0.7, 0.4, 0.5, 0.4, weight=0.75).beta == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (LabelRobustScore(real_hard=0.0, syn_hard=1.0, syn_own=1.0, random_own=0.0), 1),
        (LabelRobustScore(real_hard=1.0, syn_hard=0.0, syn_own=0.0, random_own=1.0), 0),
        (LabelRobustScore(real_hard=0.5, syn_hard=0.25, syn_own=0.5, random_own=0.25), AT_ZERO),
        (AugmentationRobustScore(1.0, 0.0, 1.0, 0.0), 1),
        (AugmentationRobustScore(0.0, 1.0, 0.0, 1.0), 0),
        (AugmentationRobustScore(0.5, 0.25, 0.25, 0.5), AT_ZERO),
    ],
)
def test_limits_and_the_middle(found: LabelRobustScore | AugmentationRobustScore, expected: float) -> None:
    assert found.score == pytest.approx(expected, abs=1e-9)


AVERAGES = [best_over_augmentations, average_over_augmentations, average_over_transfer]


@pytest.mark.parametrize(("average", "expected"), list(zip(AVERAGES, (0.75, 0.5, 0.5), strict=True)))
def test_averages_by_hand(average: Callable[[Mapping[str, float]], float], expected: float) -> None:
    assert average({"none": 0.25, "dsa": 0.75, "randaugment": 0.5}) == pytest.approx(expected)
    assert average({"none": 1.0}) == 1


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize(
    ("accuracies", "said"),
    [
        ({}, "at least one (augmentation|network)$"),
        ({"a": 0.5, "b": 62.5}, "b is 62.5, which looks like a percentage: give a fraction from 0 to 1$"),
        ({"a": -0.1}, "a is -0.1, but must be a fraction from 0 to 1$"),
        ({"a": 101.0}, "a is 101.0, but must be a fraction"),
        ({"a": math.nan, "b": 0.5}, "a is nan, but must be a fraction"),
    ],
)
def test_averages_refuse(average: Any, accuracies: dict[str, float], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        average(accuracies)


@pytest.mark.parametrize("score", [LabelRobustScore, AugmentationRobustScore])
@pytest.mark.parametrize("place", range(5))
def test_scores_refuse_what_is_no_fraction(score: Any, place: int) -> None:
    for value, said in ((50.0, "looks like a percentage"), (-0.5, "must be a"), (math.nan, "must be a")):
        values = [0.5] * 5
        values[place] = value
        with pytest.raises(RequestError, match=rf"^\w+ is {value}, .*{said}"):
            score(*values)

"""Judging distilled data: train networks on it, test them on real images."""

from datadistill.evaluation.config import NETS, EvalConfig
from datadistill.evaluation.protocols import PROTOCOLS, evaluate, work_of
from datadistill.evaluation.ranking import (
    AugmentationRobustScore,
    LabelRobustScore,
    average_over_augmentations,
    average_over_transfer,
    best_over_augmentations,
)
from datadistill.evaluation.scores import Score, Summary, percent, summarize
from datadistill.evaluation.several import evaluate_sets, nets_per_set, pooled_summary
from datadistill.training.accuracy import Accuracy, accuracy_of

__all__ = [
    "NETS",
    "PROTOCOLS",
    "Accuracy",
    "AugmentationRobustScore",
    "EvalConfig",
    "LabelRobustScore",
    "Score",
    "Summary",
    "accuracy_of",
    "average_over_augmentations",
    "average_over_transfer",
    "best_over_augmentations",
    "evaluate",
    "evaluate_sets",
    "nets_per_set",
    "percent",
    "pooled_summary",
    "summarize",
    "work_of",
]

"""Judging distilled data: train networks on it, test them on real images."""

from datadistill.evaluation.accuracy import Accuracy, accuracy_along, accuracy_of
from datadistill.evaluation.protocols import NETS, PROTOCOLS, evaluate
from datadistill.evaluation.scores import Score, Summary, percent, summarize

__all__ = [
    "NETS",
    "PROTOCOLS",
    "Accuracy",
    "Score",
    "Summary",
    "accuracy_along",
    "accuracy_of",
    "evaluate",
    "percent",
    "summarize",
]

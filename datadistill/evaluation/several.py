"""Judging several sets of one kind, such as random ones, as one."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from datadistill.data.real import RealData
from datadistill.distilled import DistilledData
from datadistill.evaluation.config import NETS, EvalConfig
from datadistill.evaluation.protocols import evaluate, work_of
from datadistill.evaluation.scores import Score, Summary, student
from datadistill.utils.progress import Bar, quiet


def nets_per_set(nets: int, sets: int) -> int:
    """Networks for each set, so that together there are at least `nets`."""
    return math.ceil(nets / sets)


def evaluate_sets(
    sets: Sequence[DistilledData],
    real: RealData,
    config: EvalConfig | None = None,
    *,
    bar: Bar = quiet,
    title: str = "evaluating",
    **options: Any,
) -> tuple[list[Score], Score]:
    """A score of every set, each on fresh networks of its own, and one of all together.

    Args:
        sets: of one kind, for the same network.
        real: the dataset.
        config: how they are judged. `nets` are shared out equally, rounded up; without it 20, or with a pool as many
            for each set as it has, at most 20. `model` is needed where its name alone does not say what it is.
        bar: shows progress, under this title.
        title: in the present participle.
        options: fields of `EvalConfig`, in the place of those of `config`.

    Raises:
        RequestError: the data does not fit the dataset.
    """
    config = replace(config or EvalConfig(), **options)
    nets = nets_per_set(config.nets or NETS, len(sets))
    share = None if config.nets is None and config.pool is not None else nets
    with bar(title, sum(work_of(data, nets, config.protocol, **config.changes) for data in sets)) as count:
        scores = [
            evaluate(data, real, config, nets=share, seed=config.seed + number, count=count)
            for number, data in enumerate(sets)
        ]
    return scores, pooled(scores)


def pooled(scores: Sequence[Score]) -> Score:
    """One score of several sets that were judged alike, with the same number of networks each.

    Mean and deviation are those of all networks together. The networks of one set have much in common, so the interval
    is Student's over the means of the sets.
    """
    if len(scores) == 1:
        return scores[0]
    befores = [score.before for score in scores if score.before is not None]
    nets = scores[0].nets
    return replace(
        scores[0],
        nets=nets * len(scores),
        accuracy=pooled_summary([score.accuracy for score in scores], nets),
        before=pooled_summary(befores, nets) if befores else None,
        by_step=tuple(pooled_summary(step, nets) for step in zip(*(score.by_step for score in scores), strict=True)),
        seconds=sum(score.seconds for score in scores),
    )


def pooled_summary(summaries: Sequence[Summary], nets: int) -> Summary:
    """One summary of several sets, with `nets` networks each."""
    if len(summaries) == 1:
        return summaries[0]
    means = np.array([summary.mean for summary in summaries])
    within = sum((nets - 1) * (summary.std or 0.0) ** 2 for summary in summaries)
    mean = float(means.mean())
    std = math.sqrt((within + nets * float(((means - mean) ** 2).sum())) / (nets * len(means) - 1))
    return Summary(mean, std, student(means))

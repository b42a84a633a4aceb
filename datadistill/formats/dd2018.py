"""`results.pth` of the code of Wang et al. 2018: a list with (images, labels, learning rate) for each gradient step.

Steps of later epochs repeat the images of the first.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datadistill.distilled import DistilledData
from datadistill.formats.base import Foreign, take_pair, take_rate
from datadistill.formats.pickles import read_pickle, write_pickle
from datadistill.utils.errors import RequestError, require


def write_2018(distilled: DistilledData, path: Path) -> None:
    """One entry for each step; without rates, one for each batch."""
    rates = distilled.learning_rates
    steps = []
    for t in range(len(distilled.batches) if rates is None else len(rates)):
        chosen = distilled.batches[t % len(distilled.batches)]
        rate = None if rates is None else rates[t].clone().cpu()
        steps.append((distilled.images[chosen].cpu(), distilled.labels[chosen].cpu(), rate))
    write_pickle(path, steps)


def read_2018(path: Path) -> list[Foreign]:
    """The one set, with the batches of one epoch.

    Raises:
        DamagedFileError: the file is damaged, or holds something else.
        RequestError: its steps have different numbers or shapes of images.
    """
    content = read_pickle(path)
    require(isinstance(content, list) and len(content) > 0, "it is not a list of steps")
    steps = [_step(entry, number) for number, entry in enumerate(content, 1)]
    period = next(n for n in range(1, len(steps) + 1) if len(steps) % n == 0 and _repeats(steps, n))
    first, rates = steps[:period], [rate for _, _, _, rate in steps]
    if len({len(labels) for _, labels, _, _ in first}) > 1 or len({images.shape[1:] for images, *_ in first}) > 1:
        raise RequestError("the file's steps have different numbers or shapes of images, which is not supported")
    known = [rate for rate in rates if rate is not None]
    require(len(known) in (0, len(rates)), "some steps have a learning rate and some have none")
    softs = [soft for _, _, soft, _ in first if soft is not None]
    require(
        len(softs) in (0, period) and len({soft.shape[1] for soft in softs}) <= 1, "its labels are of several kinds"
    )
    return [
        Foreign(
            images=torch.cat([images for images, *_ in first]),
            labels=torch.cat([labels for _, labels, _, _ in first]),
            soft_labels=torch.cat(softs) if softs else None,
            batches=torch.arange(period * len(first[0][1])).view(period, -1),
            learning_rates=torch.tensor(known) if known else None,
        )
    ]


def _step(entry: Any, number: int) -> tuple[Tensor, Tensor, Tensor | None, float | None]:
    triple = isinstance(entry, list | tuple) and len(entry) == 3
    require(triple, f"step {number} is not images, labels and a rate")
    images, labels, soft = take_pair(entry[0], entry[1], f" of step {number}")
    rate = None if entry[2] is None else take_rate(entry[2], f"the learning rate of step {number}")
    return images, labels, soft, rate


def _repeats(steps: list[tuple[Tensor, Tensor, Tensor | None, float | None]], period: int) -> bool:
    def same(one: Tensor | None, other: Tensor | None) -> bool:
        return one is other or (one is not None and other is not None and torch.equal(one, other))

    return all(
        all(same(one, other) for one, other in zip(step[:3], steps[number % period][:3], strict=True))
        for number, step in enumerate(steps)
    )

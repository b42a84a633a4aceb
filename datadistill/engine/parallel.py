"""Parallel work on networks: each whole on one core, which beats each on all of them in turn; and shared by ranks."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from datadistill.engine.memory import counted
from datadistill.utils import ranks

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def map_on_cores(function: Callable[[Item], Answer], items: Sequence[Item], device: torch.device) -> list[Answer]:
    """`[function(item) for item in items]`, shared out by rank, and on each with one core for an item.

    On a CPU with n threads and at least n items, n Python threads each run their items on a single core: PyTorch
    gives up the interpreter lock inside its operations, and small tensors gain little from being shared out among
    cores. Each item is computed alone, so the answers do not depend on the order in which they are ready. The
    function must not use one module in two calls (see `Network.twin`), and answers must be what `ranks.shared` takes.
    """
    return ranks.shared(lambda mine: map_here(function, mine, device), items)


def map_here(function: Callable[[Item], Answer], items: Sequence[Item], device: torch.device) -> list[Answer]:
    """`map_on_cores` that other ranks have no share in."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or len(items) < threads:
        return [function(item) for item in items]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(counted(function), items))
    finally:
        torch.set_num_threads(threads)


def each_on_one_core(function: Callable[[Item], Answer], items: Sequence[Item], device: torch.device) -> list[Answer]:
    """`map_on_cores`, with a single core for each item even where there are fewer items than cores.

    So an answer does not depend, in its last bits, on how many others are asked for.
    """

    def padded(mine: Sequence[Item]) -> list[Answer]:
        spare = max(0, torch.get_num_threads() - len(mine)) if device.type == "cpu" else 0

        def answer(place: int) -> list[Answer]:
            return [function(mine[place])] if place < len(mine) else []

        return [one for answers in map_here(answer, range(len(mine) + spare), device) for one in answers]

    return ranks.shared(padded, items)


def shared_out(items: Sequence[Item], device: torch.device) -> list[list[Item]]:
    """The items in order, in as many nearly equal groups as `map_here` can work on at once."""
    count = max(1, min(len(items), torch.get_num_threads() if device.type == "cpu" else 1))
    edges = [round(len(items) * i / count) for i in range(count + 1)]
    return [list(items[first:last]) for first, last in itertools.pairwise(edges)]

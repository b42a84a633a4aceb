"""Place of a process among the ranks of a job, as torchrun, srun or `--workers` give it."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from datadistill.utils.errors import RequestError


@dataclass(frozen=True)
class Place:
    """A rank's place in the job.

    Attributes:
        rank: from 0.
        count: of ranks.
        local: its number on its machine.
        local_count: ranks on its machine.
        address: where all meet first: `HOST:PORT`, or a file of this machine.
    """

    rank: int
    count: int
    local: int = 0
    local_count: int = 1
    address: str = ""


def place_given(given: Mapping[str, str] = os.environ) -> Place:
    """The place that torchrun, srun or `--workers` has given this process; the only one of a job without them.

    Raises:
        RequestError: the environment contradicts itself.
    """
    try:
        if "RANK" in given and "WORLD_SIZE" in given:
            port = given.get("MASTER_PORT", "")
            meeting = given.get("DATADISTILL_MEETING") or f"{given.get('MASTER_ADDR', 'localhost')}:{port}"
            local, here = int(given.get("LOCAL_RANK", 0)), int(given.get("LOCAL_WORLD_SIZE", 1))
            place = Place(int(given["RANK"]), int(given["WORLD_SIZE"]), local, here, meeting)
        elif int(given.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in given:
            # A batch script has SLURM_NTASKS too, although it is one process; only srun counts the tasks of a step.
            port = given.get("MASTER_PORT") or str(20000 + int(given.get("SLURM_JOB_ID", 0)) % 20000)
            host = given.get("MASTER_ADDR") or _first_host(given.get("SLURM_STEP_NODELIST", ""))
            here = int(re.match(r"\d*", given.get("SLURM_STEP_TASKS_PER_NODE", "1")).group() or 1)  # type: ignore[union-attr]
            local = int(given.get("SLURM_LOCALID", 0))
            number, count = int(given["SLURM_PROCID"]), int(given["SLURM_STEP_NUM_TASKS"])
            place = Place(number, count, local, here, f"{host}:{port}")
        else:
            return Place(0, 1)
    except ValueError as error:
        raise RequestError(f"the environment gives this process no place among the ranks: {error}") from error
    if not 0 <= place.rank < place.count:
        raise RequestError(f"the environment says that this is rank {place.rank} of {place.count}")
    return place


def is_started_by_others() -> bool:
    """Whether torchrun or srun has started this process, and not `--workers`."""
    return place_given().count > 1 and "DATADISTILL_MEETING" not in os.environ


def _first_host(nodes: str) -> str:
    """The first name in Slurm's list of nodes, such as `gpu[003-005,9],login1`."""
    match = re.match(r"([^\[,]*)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    first = "".join(part or "" for part in match.groups()) if match else ""
    return first or "localhost"

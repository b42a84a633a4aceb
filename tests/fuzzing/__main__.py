"""`python -m fuzzing`: so many damaged inputs, and what was done that must not be, as JSON."""

import argparse
import json
import os
import select
import shutil
import signal
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fuzzing.damage import damage
from fuzzing.guard import SECONDS, install, limit_memory, violation
from fuzzing.subjects import SUBJECTS

_CHILD = 250
"""Inputs of one process."""


def subject_of(seed: int, number: int) -> tuple[str, Random]:
    """What an input is, and what chance makes of it."""
    rng = Random(f"{seed} {number}")
    return rng.choices(list(SUBJECTS), [subject.weight for subject in SUBJECTS.values()])[0], rng


def run(inputs: int, seed: int, first: int = 0, only: str = "") -> dict[str, Any]:
    """Read damaged inputs.

    Args:
        inputs: how many.
        seed: of all of them.
        first: number of the first.
        only: the one subject that is taken.

    Returns:
        JSON-ready: how many, of what, and the violations with the numbers of their inputs.
    """
    numbers = [n for n in range(first, first + inputs) if only in ("", subject_of(seed, n)[0])]
    found: list[dict[str, Any]] = []
    with TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("cache", "tmp", "whole"):
            (folder / name).mkdir()
        caches = ("XDG_CACHE_HOME", "MPLCONFIGDIR", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR")
        os.environ |= {name: str(folder / "cache") for name in caches}
        os.environ |= {"TMPDIR": str(folder / "tmp"), "DATADISTILL_NATIVE": "0", "HF_HUB_OFFLINE": "1"}
        _forked(lambda write: _make(folder, {subject_of(seed, n)[0] for n in numbers}), [None], found)
        left = list(numbers)
        while left:
            share, left = left[:_CHILD], left[_CHILD:]
            done = _forked(lambda write, share=share: _read(folder, seed, share, write), share, found)
            left = share[done:] + left
    for one in found:
        one["subject"] = "making" if one["number"] is None else subject_of(seed, one["number"])[0]
    counts = Counter(subject_of(seed, n)[0] for n in numbers)
    return {"inputs": len(numbers), "seed": seed, "first": first, "subjects": dict(counts), "violations": found}


def _forked(work: Any, numbers: list[Any], found: list[dict[str, Any]]) -> int:
    """Do work in another process, which writes a line for each number; how many it came to, its death included."""
    end, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        code = 1
        with suppress(BaseException), open(os.devnull, "w") as nothing:
            for number in (1, 2):
                os.dup2(nothing.fileno(), number)
            work(write)
            code = 0
        os._exit(code)
    os.close(write)
    done, text = 0, b""
    while True:
        # The first one loads what it needs.
        ready = select.select([end], [], [], 3 * SECONDS if numbers[0] is not None else 200)[0]
        piece = os.read(end, 1 << 16) if ready else b""
        *lines, text = (text + piece).split(b"\n")
        for line in lines:
            what = json.loads(line)
            if what:
                found.append({"number": numbers[done], "what": what})
            done += 1
        if not piece:
            break
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.close(end)
    status = os.waitpid(child, 0)[1]
    if done < len(numbers) and (numbers[0] is not None or status):
        what = f"the process died ({status})" if ready else f"did not end within {3 * SECONDS:g} seconds"
        found.append({"number": numbers[done], "what": what})
        done += 1
    return done


def _settle() -> None:
    torch.set_num_threads(1)
    tempfile.tempdir = None  # it is in the environment by now
    sys.dont_write_bytecode = True
    import datadistill.cli.main as program

    program.keep_freed_memory = lambda: True


def _make(folder: Path, names: set[str]) -> None:
    """Whole files of every subject."""
    _settle()
    os.chdir(folder / "tmp")
    for name in sorted(names):
        (folder / "whole" / name).mkdir()
        SUBJECTS[name].make(folder / "whole" / name)


def _read(folder: Path, seed: int, numbers: list[int], write: int) -> None:
    """Damage a copy of some input, and read it under watch."""
    _settle()
    install()
    limit_memory()
    others = sorted(path for path in (folder / "whole").rglob("*") if path.is_file())
    for number in numbers:
        name, rng = subject_of(seed, number)
        box = folder / "box"
        shutil.rmtree(box, ignore_errors=True)
        (box / "out").mkdir(parents=True)
        # What a run writes, it writes into its own folder.
        place = box / "out" / "it" if name in _WRITTEN else box / "it"
        shutil.copytree(folder / "whole" / name, place)
        os.chdir(box)
        damage(place, others, rng)
        allowed = (box / "out", folder / "tmp", folder / "cache")
        what = violation(lambda name=name, place=place, rng=rng: SUBJECTS[name].read(place, rng), allowed)
        os.chdir(folder)
        os.write(write, json.dumps(what).encode() + b"\n")


_WRITTEN = ("run of dd", "run of dc", "parts of a pool", "experiment")


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", default="", choices=("", *SUBJECTS), help="one subject")
    arguments = parser.parse_args()
    found = run(arguments.inputs, arguments.seed, arguments.first, arguments.only)
    print(json.dumps(found, indent=2))
    sys.exit(bool(found["violations"]))


if __name__ == "__main__":
    _main()

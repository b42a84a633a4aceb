"""Whether a command that is killed at any moment and resumed ends with the bits of one that was left alone.

    python benchmarks/kills.py [--signal KILL|TERM] [--seeds FIRST:END] [--case NAME,...] [--work DIR]

Each seed draws moments, one to three, at which one of the commands is killed (SIGKILL) or asked to end (SIGTERM), and
resumed after each; then it is let go on to its end. Commands are `distill` with every method, `pretrain` for pools and
for trajectories, `evaluate` and `reproduce`: tiny, on digits, one thread, PyTorch's own operations. Compared with an
uninterrupted one are every tensor of every safetensors file, the last checkpoint too, and every figure of JSON
documents and metrics but seconds, bytes and versions. A command that was asked to end must say so in one line, with
exit code 143.

Every process is a fork of this one, which has loaded the package already: a seed takes some seconds. DIR keeps the
uninterrupted runs for the next call. Prints one JSON line, also when it is interrupted: the seeds `tried`, the `kills`
that met a process, how many ended with the `same_bits`, and `failures`, each with its seed; exit code 1 if there are
any.
"""

import os

os.environ.update({"OMP_NUM_THREADS": "1", "DATADISTILL_NATIVE": "0"})

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.figure  # noqa: F401
import torch
from same_bits import differences, leaves, values_in

import datadistill.cli.main
import datadistill.cli.reproduce
from datadistill.__main__ import run_and_exit
from datadistill.data import load
from datadistill.distillation import validation
from datadistill.experiments.recipes import Expect, Recipe
from datadistill.utils.interrupts import SIGNALS, answer_with, leave, stop
from datadistill.utils.registry import Registry

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
MLP = "--dataset digits --device cpu --model mlp"
SHORT = f"{MLP} --iterations 8 --outer-eval-every 4 --nets 1 --ipc 1 --out run"
CASES = {
    "dd": f"distill --method dd {SHORT} --batch 64 --epochs 2 --weights random-init --networks 2",
    "dc": f"distill --method dc {SHORT} --batch 8",
    "dsa": f"distill --method dsa {SHORT} --batch 8",
    "dm": f"distill --method dm {SHORT} --batch 16",
    "mtt": f"distill --method mtt {SHORT} --trajectories {FIXTURES}/digits-experts --model ConvNetD1W16 "
    "--student-steps 3 --max-start-epoch 2",
    "rat_bptt": f"distill --method rat_bptt {SHORT} --inner-steps 10 --window 4 --batch 64",
    "krr": f"distill --method krr {SHORT} --batch 64 --bodies 2 --body-steps 2 --max-age 6",
    "random_teacher": f"distill --method random_teacher {SHORT} --weights random-init",
    "pool": f"pretrain {MLP} --nets 6 --reserved 2 --epochs 3 --out pool.safetensors",
    "trajectories": f"pretrain --trajectories {MLP} --nets 4 --epochs 4 --batch 64 --out experts",
    "evaluate": f"evaluate {{work}}/whole/dd/run {MLP} --protocol dc --epochs 30 --nets 3 --json",
    "reproduce": "reproduce digits-tiny --out out",
}
"""Command lines by case; a method's case has its name."""

TINY = Recipe(
    name="digits-tiny",
    line="digits into ten images",
    run={"dataset": "digits", "model": "mlp", "weights": "random-init", "iterations": 8},
    method={"name": "dd", "steps": 1, "epochs": 1, "learning_rate": 0.3, "batch": 64, "networks": 1},
    outer={"eval_every": 4},
    expect=Expect(nets=3, accuracy=(0.0, 1.0)),
    baselines=("random",),
)
UNCOMPARED = ("seconds", "peak_bytes", "versions", "threads", "recipe", "digests", "sha256")
RESUMED = ("distill", "pretrain", "reproduce")


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; minus the signal where that killed it.
        said: on standard error.
        seconds: from its start.
    """

    code: int
    said: str
    seconds: float


def run(words: Sequence[str], folder: Path, after: float | None = None, number: int = 0) -> Ended:
    """One command in a fork of this process, which is sent a signal after so many seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until they are answered there as the program does
    process = os.fork()
    if process == 0:
        _become(words, folder)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    began, sent = time.monotonic(), after is None
    try:
        while not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if not sent and time.monotonic() - began >= (after or 0.0):
                os.kill(process, number)
                sent = True
            time.sleep(0.001)
    except KeyboardInterrupt:
        os.kill(process, signal.SIGKILL)
        raise
    finally:
        status = os.waitpid(process, 0)[1]
    said = (folder / ".said").read_text() if (folder / ".said").exists() else ""
    return Ended(os.waitstatus_to_exitcode(status), said, time.monotonic() - began)


def _become(words: Sequence[str], folder: Path) -> None:
    """The program, in this process, which ends with it."""
    code, sys.argv = 70, ["datadistill", *words]
    try:
        os.chdir(folder)
        for name, stream in ((".printed", 1), (".said", 2)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        answer_with(leave)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        run_and_exit()
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def results(folder: Path, is_printed: bool) -> dict[str, Any]:
    """What a command left, by name; a list of metrics has one entry for each validation.

    Of two checkpoints the last counts: a run that was asked to end has one from that moment where another has its last
    but one.
    """
    found = dict(_results(folder, is_printed))
    passed = [sorted(run.glob("*.safetensors"))[:-1] for run in folder.rglob("checkpoint")]
    before = tuple(f"{path.relative_to(folder)}/" for paths in passed for path in paths)
    return {name: value for name, value in found.items() if not name.startswith(before)}


def _results(folder: Path, is_printed: bool) -> Iterator[tuple[str, Any]]:
    yield from values_in(folder)
    for path in sorted(folder.rglob("metrics.jsonl")):
        yield from leaves(str(path.relative_to(folder)), [json.loads(line) for line in path.open()], UNCOMPARED)
    for path in sorted(folder.rglob("*.json")):
        yield from leaves(str(path.relative_to(folder)), json.loads(path.read_text()), UNCOMPARED)
    if is_printed:
        yield from leaves("printed", json.loads((folder / ".printed").read_text()), UNCOMPARED)


def trial(seed: int, number: int, cases: Sequence[str], work: Path) -> tuple[int, dict[str, Any]]:
    """How many kills met a process, and what is wrong, if anything."""
    draw, case = random.Random(f"{seed} {number}"), cases[seed % len(cases)]
    words = CASES[case].format(work=work).split()
    again = [*words, "--resume"] if words[0] in RESUMED else words
    seconds, kills = float((work / "whole" / f"{case}.seconds").read_text()), 0
    folder = work / "cut" / f"{number}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    for _ in range(draw.choice((1, 1, 2, 3))):
        ended = run(again, folder, draw.uniform(0, seconds), number)
        if ended.code in (-number, 128 + number):
            kills += 1
        elif ended.code:
            return kills, {"case": case, "why": f"exit code {ended.code} when killed: {ended.said[-300:]}"}
        if ended.code == 128 + number and not _is_a_line(ended.said):
            return kills, {"case": case, "why": f"said when it was asked to end: {ended.said[-300:]}"}
        if number == signal.SIGTERM and ended.code == -number:
            return kills, {"case": case, "why": "it was killed by a signal that it is to answer"}
    ended = run(again, folder)
    if ended.code:
        return kills, {"case": case, "why": f"exit code {ended.code} when resumed: {ended.said[-300:]}"}
    is_printed = "--json" in words
    changes = differences(results(work / "whole" / case, is_printed), results(folder, is_printed))
    shutil.rmtree(folder)
    return kills, {"case": case, "differs": changes} if changes else {}


def _is_a_line(said: str) -> bool:
    last = said.strip().splitlines()[-1:]
    return "Traceback" not in said and bool(last) and last[0].startswith("datadistill: interrupted")


def make_whole(case: str, work: Path) -> None:
    """The uninterrupted run of a case, unless it is there from before."""
    done = work / "whole" / f"{case}.seconds"
    if not done.exists():
        shutil.rmtree(work / "whole" / case, ignore_errors=True)
        ended = run(CASES[case].format(work=work).split(), work / "whole" / case)
        if ended.code:
            raise SystemExit(f"{case} failed with exit code {ended.code}: {ended.said}")
        done.write_text(str(ended.seconds))


def _seeds(text: str) -> range:
    first, _, end = text.rpartition(":")
    return range(int(first or 0), int(end))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--seeds", type=_seeds, default=range(22), metavar="FIRST:END", help="(default: 0:22)")
    parser.add_argument("--case", type=lambda text: text.split(","), default=list(CASES), metavar="NAME,...")
    parser.add_argument("--work", type=Path, metavar="DIR", help="(default: a temporary folder)")
    given = parser.parse_args()
    if unknown := set(given.case) - CASES.keys():
        parser.error(f"no case {', '.join(sorted(unknown))}: there are {', '.join(CASES)}")
    torch.set_num_threads(1)
    datadistill.cli.reproduce.recipes = lambda: Registry("recipe", (TINY,))  # type: ignore[assignment]
    validation.CONDENSED_EPOCHS = 5
    load("digits")
    number = getattr(signal, f"SIG{given.signal}")
    with tempfile.TemporaryDirectory() as place:
        work = (given.work or Path(place)).resolve()
        for case in dict.fromkeys(["dd", *given.case]):  # the first is what `evaluate` looks at
            make_whole(case, work)
        found, tried = list[tuple[int, dict[str, Any]]](), list[int]()
        answer_with(stop)
        with suppress(KeyboardInterrupt):  # what has been tried by then is printed
            for seed in given.seeds:
                found.append(trial(seed, int(number), given.case, work))
                tried.append(seed)
    failures = [{"seed": seed, **wrong} for seed, (_, wrong) in zip(tried, found, strict=False) if wrong]
    line = {"signal": given.signal, "seeds": [given.seeds[0], given.seeds[0] + len(tried)], "tried": len(tried)}
    line |= {"kills": sum(met for met, _ in found), "same_bits": len(tried) - len(failures), "failures": failures}
    print(json.dumps(line))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()

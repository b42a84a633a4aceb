"""Whether a command that is killed at any moment and resumed ends with the bits of one that was left alone.

    python benchmarks/kills.py [--signal KILL|TERM] [--seeds FIRST:END] [--case NAME,...] [--ranks N,...] [--work DIR]

Each seed draws moments, one to three, at which one of the commands is killed (SIGKILL) or asked to end (SIGTERM), and
resumed after each; then it is let go on to its end. Commands are `distill` with every method, `pretrain` for pools and
for trajectories, `evaluate` and `reproduce`: tiny, on digits, one thread, PyTorch's own operations. Compared with an
uninterrupted one are every tensor of every safetensors file, the last checkpoint too, and every figure of JSON
documents and metrics but seconds, bytes and versions. A command that was asked to end must say so in one line, with
exit code 143.

With --ranks each command is run by one of these numbers of ranks, drawn anew each time, one of which gets the signal.
The others must end by themselves, in time, and rank 0 must say so in one line, unless it was killed; the uninterrupted
run that all is compared with is of one process.

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
import torch.fx.experimental.symbolic_shapes  # what every run loads at its first derivative
from same_bits import differences, leaves, values_in

import datadistill.cli.main
import datadistill.cli.reproduce
from datadistill.__main__ import run_and_exit
from datadistill.data import load
from datadistill.distillation import validation
from datadistill.experiments.recipes import Expect, Recipe
from datadistill.methods import judging
from datadistill.utils import ranks as meetings
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
    "rat_bptt": f"distill --method rat_bptt {SHORT} --inner-steps 10 --window 4 --batch 64 --networks 2",
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
DEADLINE = 120.0
meetings.SECONDS_TO_MEET = 20.0  # forks start at once
UNCOMPARED = ("seconds", "peak_bytes", "versions", "threads", "recipe", "digests", "sha256")
RESUMED = ("distill", "pretrain", "reproduce")


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code of the process that was sent the signal, or of the first; minus the signal where that killed it.
        others: exit codes of the other ranks.
        said: on standard error, by rank 0.
        seconds: from its start.
    """

    code: int
    others: list[int]
    said: str
    seconds: float


@dataclass(frozen=True)
class Sent:
    """A signal for a command.

    Attributes:
        number: of the signal.
        after: seconds from the command's start.
        rank: that gets it.
    """

    number: int
    after: float
    rank: int = 0


def run(words: Sequence[str], folder: Path, sent: Sent | None = None, ranks: int = 1) -> Ended:
    """One command in forks of this process, one of which may be sent a signal.

    Raises:
        TimeoutError: some rank did not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder.with_name(f"{folder.name}.meeting")
    meeting.unlink(missing_ok=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until they are answered there as the program does
    processes = []
    for rank in range(ranks):
        process = os.fork()
        if process == 0:
            _become(words, folder, place(rank, ranks, meeting))
        processes.append(process)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    began, codes, due = time.monotonic(), dict[int, int](), sent
    try:
        while len(codes) < ranks:
            for rank, process in enumerate(processes):
                if rank not in codes and (found := os.waitpid(process, os.WNOHANG))[0]:
                    codes[rank] = os.waitstatus_to_exitcode(found[1])
            now = time.monotonic() - began
            if due is not None and now >= due.after:
                if due.rank not in codes:
                    os.kill(processes[due.rank], due.number)
                due = None
            if now > DEADLINE:
                raise TimeoutError(f"rank {sorted(set(range(ranks)) - set(codes))} has not ended")
            time.sleep(0.001)
    finally:
        for rank in set(range(ranks)) - set(codes):
            os.kill(processes[rank], signal.SIGKILL)
            os.waitpid(processes[rank], 0)
        meeting.unlink(missing_ok=True)
    said = (folder / ".said").read_text() if (folder / ".said").exists() else ""
    first = 0 if sent is None else sent.rank
    return Ended(codes.pop(first), list(codes.values()), said, time.monotonic() - began)


def place(rank: int, ranks: int, meeting: Path) -> dict[str, str]:
    """The environment of a rank; nothing for a single process."""
    here = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
    named = {name: str(value) for name, value in here.items()} | {"DATADISTILL_MEETING": str(meeting)}
    return named if ranks > 1 else {}


def _become(words: Sequence[str], folder: Path, variables: dict[str, str]) -> None:
    """The program, in this process, which ends with it."""
    code, sys.argv, rank = 70, ["datadistill", *words], variables.get("RANK", "0")
    try:
        os.chdir(folder)
        os.environ.update(variables)
        for name, stream in ((".printed", 1), (".said", 2)):
            name += f"-{rank}" if rank != "0" else ""
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


def trial(seed: int, number: int, cases: Sequence[str], ranks: Sequence[int], work: Path) -> tuple[int, dict[str, Any]]:
    """How many kills met a process, and what is wrong, if anything."""
    draw, case = random.Random(f"{seed} {number}"), cases[seed % len(cases)]
    words = CASES[case].format(work=work).split()
    again = [*words, "--resume"] if words[0] in RESUMED else words
    seconds, kills = float((work / "whole" / f"{case}.seconds").read_text()), 0
    folder = work / "cut" / f"{number}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        for _ in range(draw.choice((1, 1, 2, 3))):
            # More ranks than cores take longer.
            after, count = draw.uniform(0, seconds), draw.choice(ranks)
            sent = Sent(number, after * count, draw.randrange(count))
            ended = run(again, folder, sent, count)
            if ended.code in (-number, 128 + number):
                kills += 1
            if wrong := _what_is_wrong(ended, sent):
                return kills, {"case": case, "ranks": count, "why": f"{wrong}: {ended.said[-300:]}"}
        ended = run(again, folder, ranks=draw.choice(ranks))
    except TimeoutError as error:
        return kills, {"case": case, "why": str(error)}
    if ended.code or any(ended.others):
        return kills, {"case": case, "why": f"exit code {ended.code} when resumed: {ended.said[-300:]}"}
    is_printed = "--json" in words
    changes = differences(results(work / "whole" / case, is_printed), results(folder, is_printed))
    shutil.rmtree(folder)
    return kills, {"case": case, "differs": changes} if changes else {}


def _what_is_wrong(ended: Ended, sent: Sent) -> str:
    """With how a command ended by a signal, if that met it."""
    met = ended.code in (-sent.number, 128 + sent.number)
    if not met:
        return f"exit code {ended.code} when killed" if ended.code or any(ended.others) else ""
    if sent.number == signal.SIGTERM:
        if ended.code == -sent.number:
            return "it was killed by a signal that it is to answer"
        # One that had done all its work by then ends well; and where the signal came before the ranks had met, the
        # others wait for that one in vain, and say so.
        in_vain = ended.seconds > meetings.SECONDS_TO_MEET
        wrong = [code for code in ended.others if code not in (0, 128 + sent.number, *([1] if in_vain else []))]
        were_done = sent.rank != 0 and not any(ended.others)
        is_said = were_done or _is_a_line(ended.said) or (in_vain and "does not find the others" in ended.said)
        return f"others ended with {wrong}" if wrong else "" if is_said else "said when asked to end"
    wrong = [code for code in ended.others if code not in (0, 1)]
    is_said = sent.rank == 0 or not any(ended.others) or "without a word" in ended.said
    return f"others ended with {wrong}" if wrong else "" if is_said else "said when a rank was killed"


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
    parser.add_argument(
        "--ranks", type=lambda text: [int(word) for word in text.split(",")], default=[1], metavar="N,..."
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="(default: a temporary folder)")
    given = parser.parse_args()
    if unknown := set(given.case) - CASES.keys():
        parser.error(f"no case {', '.join(sorted(unknown))}: there are {', '.join(CASES)}")
    torch.set_num_threads(1)
    datadistill.cli.reproduce.recipes = lambda: Registry("recipe", (TINY,))  # type: ignore[assignment]
    validation.CONDENSED_EPOCHS, judging.EPOCHS_AUGMENTED = 5, 50
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
                found.append(trial(seed, int(number), given.case, given.ranks, work))
                tried.append(seed)
    failures = [{"seed": seed, **wrong} for seed, (_, wrong) in zip(tried, found, strict=False) if wrong]
    line = {"signal": given.signal, "seeds": [given.seeds[0], given.seeds[0] + len(tried)], "tried": len(tried)}
    line |= {"ranks": given.ranks} if given.ranks != [1] else {}
    line |= {"kills": sum(met for met, _ in found), "same_bits": len(tried) - len(failures), "failures": failures}
    print(json.dumps(line))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()

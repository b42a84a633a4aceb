"""Whether a change of the code changed a result: the same short runs before and after it, compared bit for bit.

    python benchmarks/same_bits.py BEFORE AFTER [--case NAME,...] [--allow NAME,...]

BEFORE and AFTER are folders with a checkout, or revisions of this repository. Both make the same small runs on digits
by their command lines, on one thread, in temporary folders; some four minutes in all. Compared are every tensor of
every safetensors file, and what `--json` printed but for seconds and versions. Prints one JSON line for each case:
`same`; what `differs`, by name, with the largest difference of a tensor relative to its largest value; what `failed`;
and `seconds`. Exit code 1 if a case failed, or anything differs but what `--allow` names: cases, or names of what
differs, with `*` for any part, such as `*/checkpoint/*`.

PyTorch's own operations are used, so that no measurement of ours decides what is computed. With `DATADISTILL_NATIVE=1`
in the environment ours are too: each side builds and measures its own unless their sources are the same, and where
another choice follows, last bits differ.
"""

import argparse
import io
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

MLP = "--dataset digits --device cpu --model mlp"
CONVNET = "--dataset digits --device cpu --model ConvNetD1W8"
SHORT = "--iterations 20 --outer-eval-every 10 --nets 1 --out run"
DD = f"distill {MLP} {SHORT} --batch 64 --epochs 2"
POOL = "--pool ../pool/pool.safetensors"
BASELINE = f"baseline {MLP} --steps 2 --epochs 2 --nets 2 --out run --json"
CASES: dict[str, tuple[str, ...]] = {
    "pool": (f"pretrain {MLP} --nets 5 --reserved 2 --epochs 2 --out pool.safetensors",),
    "trajectories": (
        f"pretrain --trajectories {CONVNET} --nets 2 --epochs 3 --batch 64 --augment crop_scale --out experts",
    ),
    "random-init": (f"{DD} --weights random-init --steps 2 --networks 3 --outer-settle 2 --storage full",),
    "fixed-init": (
        f"distill {CONVNET} {SHORT} --weights fixed-init --batch 64 --epochs 3 --surrogate-width 0 --storage recompute",
    ),
    "random-pretrained": (
        f"{DD} {POOL} --weights random-pretrained --steps 3 --networks 2 --storage checkpoint --every 2",
    ),
    "fixed-pretrained": (f"{DD} {POOL} --weights fixed-pretrained --steps 1",),
    "soft-labels": (f"{DD} --weights random-init --steps 2 --labels soft --augment shift_scale_rotate",),
    "kinks": (f"{DD} --weights fixed-init --surrogate-width 0.3 --storage checkpoint",),
    "dc": (f"distill {CONVNET} {SHORT} --method dc --batch 16 --ipc 2 --matches 3 --inner-epochs 4",),
    "dsa": (f"distill {CONVNET} {SHORT} --method dsa --batch 16 --augment crop_scale_rotate",),
    "dm": (f"distill {MLP} {SHORT} --method dm --batch 16 --ipc 2 --augment color_crop_flip",),
    "mtt": (
        f"distill {CONVNET} {SHORT} --method mtt --trajectories ../trajectories/experts --student-steps 6 "
        "--max-start-epoch 1 --augment crop_scale",
    ),
    "resumed": (
        f"distill {MLP} --iterations 300 --outer-eval-every 50 --nets 1 --batch 64 --out run",
        "distill --resume --nets 1 --out run",
    ),
    "random": (f"{BASELINE} --how random --sets 2",),
    "optimized": (f"{BASELINE} --how optimized --sets 5",),
    "kmeans": (f"{BASELINE} --how kmeans",),
    "average": (f"{BASELINE} --how average",),
    "herding": (
        f"baseline {MLP} --how herding --protocol dc --ipc 2 --epochs 50 --augment crop --nets 2 --out run --json",
    ),
    "kcenter": (f"{BASELINE} --how kcenter",),
    "evaluate-own": (
        "evaluate ../random-init/run ../fixed-init/run ../fixed-pretrained/run ../soft-labels/run --nets 2 --json",
    ),
    "evaluate-pool": (f"evaluate ../random-pretrained/run {POOL} --json",),
    "evaluate-dc": (
        "evaluate ../random-init/run ../mtt/run --models mlp,ConvNetD1W4 --protocol dc --epochs 50 --nets 2 --json",
    ),
}
"""Command lines by case, which runs in a folder of its name and may use files of the cases above it.

All commands of a case but the last are interrupted, each as soon as it has saved a checkpoint.
"""

OLDER = {"--outer-eval-every": "--outer-look-every", "--surrogate-width": "--kink-width"}
"""What a word of `CASES` was before it was renamed; a side that refuses the word is given this."""

UNCOMPARED = ("seconds", "versions")


class Failed(Exception):
    """A command that did not end as it should, or a case that left nothing."""


@dataclass(frozen=True)
class Side:
    """The code before or after the change.

    Attributes:
        code: the folder with the package.
        work: where the cases' folders are made.
        renamed: words of `OLDER` that it refused.
    """

    code: Path
    work: Path
    renamed: set[str] = field(default_factory=set)

    def run(self, case: str) -> tuple[dict[str, Any], float]:
        """What the commands of a case leave, by name, and seconds.

        Raises:
            Failed: a command did not end as it should, or nothing was left.
        """
        folder, began = self.work / case, time.perf_counter()
        folder.mkdir(parents=True)
        *interrupted, last = CASES[case]
        for line in interrupted:
            self._command(line.split(), folder, code=130)
        self._command(last.split(), folder, code=0)
        seconds, values = time.perf_counter() - began, dict(values_in(folder))
        if not values:
            raise Failed("nothing was left to compare")
        return values, seconds

    def _command(self, words: list[str], folder: Path, code: int) -> None:
        """One command, which is to end with this exit code; 130 after an interrupt."""
        spelled = [part for word in words for part in shlex.split(OLDER[word] if word in self.renamed else word)]
        with (folder / f"{words[0]}.json" if "--json" in words else Path(os.devnull)).open("w") as output:
            process = self._started(spelled, folder, output)
            if code == 130:
                _interrupt(process, folder)
            error = process.communicate()[1]
        refused = {word for word in words if word in OLDER and word in error} - self.renamed
        if process.returncode == 2 and refused:
            self.renamed.update(refused)
            self._command(words, folder, code)
        elif process.returncode != code:
            last = (error.strip().splitlines() or ["nothing was said"])[-1]
            raise Failed(f"exit code {process.returncode}, not {code}, from {shlex.join(spelled)}: {last}")

    def _started(self, words: list[str], folder: Path, output: io.TextIOWrapper) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "datadistill", *words],
            cwd=folder,
            env={"DATADISTILL_NATIVE": "0", **os.environ, "PYTHONPATH": str(self.code), "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        )


def _interrupt(process: subprocess.Popen[str], folder: Path) -> None:
    """Ctrl-C as soon as there is a checkpoint."""
    while process.poll() is None and not any(folder.rglob("checkpoint/*.safetensors")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)


def values_in(folder: Path) -> Iterator[tuple[str, Any]]:
    """Every tensor in a folder's files, and every figure or word of its JSON documents, with a name."""
    for path in sorted(folder.rglob("*.safetensors")):
        for name, tensor in load_file(path).items():
            yield f"{path.relative_to(folder)}/{name}", tensor
    for path in sorted(folder.glob("*.json")):
        yield from leaves(path.stem, json.loads(path.read_text()))


def leaves(name: str, value: Any, uncompared: Sequence[str] = UNCOMPARED) -> Iterator[tuple[str, Any]]:
    """Every figure or word of a JSON value, with a name; floats as tensors."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in uncompared:
                yield from leaves(f"{name}/{key}", part, uncompared)
    else:
        yield name, torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else value


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float | str]:
    """What is not the same, by name."""
    changes: dict[str, float | str] = dict.fromkeys(before.keys() - after.keys(), "is gone")
    changes |= dict.fromkeys(after.keys() - before.keys(), "is new")
    for name in before.keys() & after.keys():
        if _as_bytes(before[name]) != _as_bytes(after[name]):
            changes[name] = _difference(before[name], after[name])
    return dict(sorted(changes.items()))


def _as_bytes(value: Any) -> Any:
    """What two equal values have in common and no others: of a tensor type, shape and bits."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return value


def _difference(before: Any, after: Any) -> float | str:
    """The largest difference relative to the largest value before, if that is a finite number; else what changed."""
    if not (isinstance(before, Tensor) and isinstance(after, Tensor)):
        return f"{before} became {after}"
    kinds = [f"{tensor.dtype} {list(tensor.shape)}" for tensor in (before, after)]
    if kinds[0] != kinds[1]:
        return f"{kinds[0]} became {kinds[1]}"
    largest = float((after.double() - before.double()).abs().max() / before.double().abs().max())
    return float(f"{largest:.2g}") if math.isfinite(largest) else "not by a finite factor"


def compare(case: str, before: Side, after: Side) -> dict[str, Any]:
    """The line of a case."""
    values, seconds, failed = [], {}, {}
    for name, side in (("before", before), ("after", after)):
        try:
            found, taken = side.run(case)
        except Failed as error:
            failed[name] = str(error)
        else:
            values.append(found)
            seconds[name] = round(taken, 1)
    differs = {} if failed else differences(*values)
    line: dict[str, Any] = {"case": case, "same": not (failed or differs), "differs": differs, "seconds": seconds}
    return line | ({"failed": failed} if failed else {})


def passes(line: dict[str, Any], allowed: list[str]) -> bool:
    """Whether nothing failed and nothing differs but what is allowed."""
    case = line["case"]
    names = [(case, f"{case}/{name}") for name in line["differs"]]
    return "failed" not in line and all(
        any(fnmatchcase(name, pattern) for name in both for pattern in allowed) for both in names
    )


def chosen(names: list[str]) -> list[str]:
    """The cases with those that they use, in the order of the table."""
    needed = set(names or CASES)
    for case in reversed(CASES):
        if case in needed:
            needed |= {name for line in CASES[case] for name in re.findall(r"\.\./([\w-]+)/", line)}
    return [case for case in CASES if case in needed]


@contextmanager
def checkout(given: str) -> Iterator[Path]:
    """The folder itself, or one with the package as a revision of this repository has it, while it is needed."""
    if (Path(given) / "datadistill").is_dir():
        yield Path(given).resolve()
        return
    command = ["git", "-C", str(Path(__file__).parents[1]), "archive", given, "datadistill"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode().strip()
        raise SystemExit(f"{given} is neither a folder with a checkout nor a revision with the package: {said}")
    with tempfile.TemporaryDirectory() as place:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(place, filter="data")
        yield Path(place)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", metavar="BEFORE")
    parser.add_argument("after", metavar="AFTER")
    parser.add_argument("--case", type=_names, default=[], metavar="NAME,...", help=f"only these of {', '.join(CASES)}")
    parser.add_argument("--allow", type=_names, default=[], metavar="NAME,...", help="what may differ")
    given = parser.parse_args()
    if unknown := set(given.case) - CASES.keys():
        parser.error(f"no case {', '.join(sorted(unknown))}: there are {', '.join(CASES)}")
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        before, after = (
            Side(stack.enter_context(checkout(name)), work / place)
            for name, place in ((given.before, "before"), (given.after, "after"))
        )
        good = True
        for case in chosen(given.case):
            line = compare(case, before, after)
            print(json.dumps(line), flush=True)
            good = passes(line, given.allow) and good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()

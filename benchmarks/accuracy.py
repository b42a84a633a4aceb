"""The best set for the time: held-out accuracy on fresh networks, by method and by wall clock.

    python benchmarks/accuracy.py [--dataset NAME] [--ipc N] [--model NAME] [--methods NAME,...] [--minutes X,...]
                                  [--nets N] [--out DIR] [--threads N]

Each method distils for so many minutes, and once for each number of minutes, since schedules go by the whole length.
Its set is then judged on the held-out slice of the training split, on fresh networks: by its own recipe, and by
protocol `dc`. No figure here is of test images. Methods that learn from experts train them first, and that time counts.
Selected real images are there at once: `random`, `kmeans`, `herding` and `kcenter` stand for baselines.

Runs lie in `--out`, by method and minutes; what is there already is not made again, so a benchmark that was stopped
goes on. Run nothing beside it: seconds are the clock's. Prints one JSON line for each method and number of minutes:

    dataset, ipc, model, method, minutes
                    what was asked for
    isa, threads, processor, kernels
                    where (see `common.py`)
    seconds, steps  what distilling took; of baselines, choosing
    own, dc         held-out accuracy by the set's own recipe and by protocol `dc`: mean, std and nets

and at the end draws `--out`/accuracy.png, and says which methods were ahead of the default by more than two standard
errors of the difference; then the exit code is 1.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common

import datadistill as dd
from datadistill.baselines import BASELINES
from datadistill.engine import kernels
from datadistill.methods import METHODS

DEFAULT = "default"
EXPERTS = ("--nets", "10", "--epochs", "20", "--batch", "512")
SHARE = 0.35
"""Of the time, at most, for experts."""


def command(*words: object) -> float:
    """Run a command of the package; the seconds that it took."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "datadistill", *map(str, words)], check=True, stdout=sys.stderr, stdin=subprocess.DEVNULL
    )
    return time.perf_counter() - began


def distilled(given: argparse.Namespace, method: str, minutes: float, folder: Path) -> dict[str, Any]:
    """Make the set of a method in a folder: what it took."""
    about = ["--dataset", given.dataset, "--ipc", given.ipc, "--model", given.model]
    if method in [record.name for record in BASELINES]:
        seconds = command("baseline", "--how", method, *about, "--protocol", "dc", "--nets", 1, "--out", folder)
        return {"seconds": seconds, "steps": 0}
    words, budget = ["--weights", "random-init", "--nets", 1, "--out", folder], 60 * minutes
    if method != DEFAULT:
        words += ["--method", method]
        if METHODS.get(method).needs.experts:
            experts = given.out / f"experts-{given.dataset}-{given.model}"
            if not (experts.parent / f"{experts.name}.json").exists():
                taken = command("pretrain", "--trajectories", *about[:2], *about[4:], *EXPERTS, "--out", experts)
                (experts.parent / f"{experts.name}.json").write_text(json.dumps(taken))
            budget -= json.loads((experts.parent / f"{experts.name}.json").read_text())
            if budget < (1 - SHARE) * 60 * minutes:
                raise SystemExit(f"experts take more than a third of {minutes:g} minutes: leave {method} out")
            words += ["--trajectories", experts]
    if (folder / "config.json").exists():
        words.append("--resume")
    command("distill", *about, *words, "--budget", f"{budget:.0f}s")
    cost = dd.load_distilled(folder).provenance.cost
    # Of the default, the better attempt's are recorded; all of it took the whole time.
    seconds = 60 * minutes if method == DEFAULT else 60 * minutes - budget + cost["seconds"]
    return {"seconds": seconds, "steps": cost["outer_steps"]}


def judged(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Held-out accuracies of a folder's set by both protocols."""
    real, data, found = dd.load(given.dataset), dd.load_distilled(folder), {}
    for protocol in ("own", "dc"):
        score = dd.evaluate(data, real, nets=given.nets, protocol=protocol, split="held_out").accuracy
        found[protocol] = {"mean": round(score.mean, 5), "std": round(score.std or 0.0, 5), "nets": given.nets}
    return found


def points(given: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows, in the order in which they are made: cheap ones first."""
    rows = []
    for minutes in given.minutes:
        for method in given.methods:
            if minutes > min(given.minutes) and method in [record.name for record in BASELINES]:
                continue
            folder = given.out / f"{given.dataset}-{given.ipc}-{method}-{minutes:g}m"
            kept = given.out / f"{folder.name}.json"
            if not kept.exists():
                cost = distilled(given, method, minutes, folder)
                asked = {"dataset": given.dataset, "ipc": given.ipc, "model": given.model, "method": method}
                row = {**asked, "minutes": minutes, **common.facts(), **cost, **judged(given, folder)}
                kept.write_text(json.dumps(row))
            rows.append(json.loads(kept.read_text()))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def ahead(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Sentences on what beat the default at the same time, by either protocol, by more than noise."""
    found = []
    for mine in (row for row in rows if row["method"] == DEFAULT):
        for other in rows:
            if other["minutes"] > mine["minutes"]:
                continue
            for protocol in ("own", "dc"):
                one, two = mine[protocol], other[protocol]
                noise = 2 * math.sqrt((one["std"] ** 2 + two["std"] ** 2) / one["nets"])
                if two["mean"] - one["mean"] > noise:
                    found.append(
                        f"{other['method']} has {two['mean']:.1%} by {protocol} after {other['minutes']:g} minutes, "
                        f"the default {one['mean']:.1%} after {mine['minutes']:g}"
                    )
    return found


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy over time, a line for each method; selected images, which take no time, are level lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    names = list(dict.fromkeys(row["method"] for row in rows))
    for axes, protocol in zip(figure.subplots(1, 2, sharey=True), ("own", "dc"), strict=True):
        for number, name in enumerate(names):
            mine = [row for row in rows if row["method"] == name]
            seconds, means = [row["seconds"] for row in mine], [100 * row[protocol]["mean"] for row in mine]
            if mine[0]["steps"]:
                axes.errorbar(seconds, means, [100 * row[protocol]["std"] for row in mine], marker="o", label=name)
            else:
                axes.axhline(means[0], color=f"C{number}", linestyle=":", label=name)
        axes.set(xscale="log", xlabel="seconds", title="own recipe" if protocol == "own" else "protocol dc")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("held-out accuracy (%)")
    figure.axes[1].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--model", default="convnetW64")
    parser.add_argument("--methods", default="random,kmeans,herding,dc,dsa,dm,mtt,rat_bptt,default")
    parser.add_argument("--minutes", default="2,10,30")
    parser.add_argument("--nets", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    common.add_flags(parser)
    given = parser.parse_args()
    common.use_isa(given.isa)
    common.use_threads(given.threads[0])
    given.methods, given.minutes = given.methods.split(","), sorted(map(float, given.minutes.split(",")))
    given.out.mkdir(parents=True, exist_ok=True)
    kernels.build()
    rows = points(given)
    draw(rows, given.out / "accuracy.png")
    better = ahead(rows)
    for sentence in better:
        print(sentence, file=sys.stderr)
    sys.exit(bool(better))


if __name__ == "__main__":
    main()

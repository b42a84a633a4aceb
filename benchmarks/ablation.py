"""What each ingredient of recipe `mnist-fixed-10` is worth: the recipe with one thing changed at a time.

    python benchmarks/ablation.py [--iterations N] [--seeds 0,1] [--only NAME,...] [--out DIR]

Prints one JSON line for each run: the change, the seed, and the best and last accuracy on the held-out slice of the
training split. Test images are not used. Runs lie in DIR and are resumed, so the command can be interrupted.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datadistill as dd
from datadistill.distillation.run_folder import RunFolder
from datadistill.experiments.recipes import recipes
from datadistill.utils.runtime import keep_freed_memory

CHANGES: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "jumps of ReLU's derivative left out": {"surrogate_width": 0.0},
    "half the width": {"surrogate_width": 0.15},
    "twice the width": {"surrogate_width": 0.6},
    "no clipping": {"clip": 0.0},
    "no average": {"average": 0.0},
    "rates learned as slowly as images": {"lr_lr": 0.0},
    "Adam's usual betas": {"betas": (0.9, 0.999)},
    "half the rate": {"lr": 0.015},
    "twice the rate": {"lr": 0.06},
    "quadratic schedule": {"schedule": "quadratic"},
    "images from noise": {"images": "noise"},
}


def run(name: str, seed: int, iterations: int, out: Path, real: dd.RealData) -> dict[str, Any]:
    config = replace(recipes().get("mnist-fixed-10").config(), seed=seed, iterations=iterations)
    for key, value in CHANGES[name].items():
        group = "method" if hasattr(config.method, key) else "outer"
        config = config.changed({group: {key: value}})
    folder = RunFolder(out / f"{name.replace(' ', '-')}-{seed}-{iterations}")
    with dd.Progress() as bar:
        result = dd.distill(real, config=config, out=folder.path, resume=True, reporter=bar)
    return {
        "change": name,
        "seed": seed,
        "iterations": iterations,
        "held_out_best": result.held_out.correct,
        "held_out_last": folder.metrics()[-1]["held_out_accuracy"],
        "seconds": round(result.seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=recipes().get("mnist-fixed-10").run["iterations"])
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--only", default=",".join(CHANGES))
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    arguments = parser.parse_args()
    keep_freed_memory()
    real = dd.load("mnist")
    for seed in map(int, arguments.seeds.split(",")):
        for name in arguments.only.split(","):
            print(json.dumps(run(name, seed, arguments.iterations, arguments.out, real)), flush=True)


if __name__ == "__main__":
    main()

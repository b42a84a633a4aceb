"""Networks that several tests start from, trained once and kept in tests/fixtures.

`python tests/trained.py` makes the files anew. tests/test_trained.py does so too and compares: needed after a change of
what training does, and then the files are committed with that change.
"""

from pathlib import Path

import torch

import datadistill as dd

FIXTURES = Path(__file__).parent / "fixtures"
POOL, EXPERTS = FIXTURES / "digits-mlp.safetensors", FIXTURES / "digits-experts"


def make_pool(real: dd.RealData, out: Path) -> dd.Pool:
    """Networks that are half trained, so that there is something to adapt; so many that they cannot be memorised."""
    return dd.make_pool(
        real,
        out,
        model="mlp",
        nets=35,
        reserved=10,
        training=dd.TrainRecipe(epochs=1, batch=64),
        device="cpu",
        command="python tests/trained.py",
    )


def make_experts(real: dd.RealData, out: Path) -> dd.Trajectories:
    """A few experts, well trained, as method mtt matches them."""
    return dd.make_trajectories(
        real,
        out,
        model="ConvNetD1W16",
        experts=4,
        training=dd.TrainRecipe(10, 0.01, 64, "sgd", schedule="constant", augment="crop_scale_rotate"),
        device="cpu",
        command="python tests/trained.py",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for path in (POOL, *EXPERTS.glob("*")):
        path.unlink(missing_ok=True)
    FIXTURES.mkdir(exist_ok=True)
    make_pool(dd.load("digits"), POOL)
    make_experts(dd.load("digits"), EXPERTS)

"""Every test checks array shapes: jaxtyping and beartype read the package's signatures."""

from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

with install_import_hook("datadistill", "beartype.beartype"):
    import datadistill as dd
    import datadistill.cli.main

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> dd.RealData:
    return dd.load("digits")


@pytest.fixture(scope="session")
def pool(digits: dd.RealData, tmp_path_factory: pytest.TempPathFactory) -> dd.Pool:
    """Networks that are half trained, so that there is something to adapt; so many that they cannot be memorised."""
    torch.set_num_threads(1)
    return dd.make_pool(
        digits,
        tmp_path_factory.mktemp("pools") / "digits-mlp.safetensors",
        model="mlp",
        nets=50,
        reserved=5,
        training=dd.Training(epochs=1, batch=64),
        device="cpu",
    )


@pytest.fixture(scope="session")
def trajectories(digits: dd.RealData, tmp_path_factory: pytest.TempPathFactory) -> dd.Trajectories:
    """A few experts, well trained, as method mtt matches them."""
    torch.set_num_threads(1)
    return dd.make_trajectories(
        digits,
        tmp_path_factory.mktemp("trajectories") / "digits",
        model="ConvNetD1W16",
        experts=4,
        training=dd.Training(10, 0.01, 64, "sgd", falls="constant", augment="crop_scale_rotate"),
        device="cpu",
    )


@pytest.fixture(scope="session")
def mnist() -> dd.RealData:
    return dd.load("mnist")

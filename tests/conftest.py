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
def mnist() -> dd.RealData:
    return dd.load("mnist")

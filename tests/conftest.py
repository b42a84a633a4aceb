"""What all tests share: data, trained networks, and the check of array shapes when DATADISTILL_SHAPES asks for it."""

import os
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

# With it every call of the package is checked against its signature, which makes the tests two to eight times slower.
SHAPES = os.environ.get("DATADISTILL_SHAPES", "0") == "1"

with install_import_hook("datadistill", "beartype.beartype") if SHAPES else nullcontext():
    import trained

    import datadistill as dd
    import datadistill.cli.main
    from datadistill.distillation.synthesis import joined
    from datadistill.methods import Context, Method, Problem, State, Step, Synthesis, plan

ROOT = Path(__file__).parent.parent

# Whatever started the tests may have had these ignored, as a shell does in the background, and programs inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (getattr(signal, "SIGHUP", 0), signal.SIG_DFL)):
    if number and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> dd.RealData:
    return dd.load("digits")


@pytest.fixture(scope="session")
def pool() -> dd.Pool:
    """Half trained networks on digits, mlp: 25 to distil with and 10 to judge by."""
    return dd.load_pool(trained.POOL)


@pytest.fixture(scope="session")
def trajectories() -> dd.Trajectories:
    """Four experts on digits, ConvNetD1W16, 10 epochs."""
    return dd.load_trajectories(trained.EXPERTS)


@pytest.fixture(scope="session")
def mnist() -> dd.RealData:
    return dd.load("mnist")


def start_of(method: Method | Synthesis, problem: Problem, generator: torch.Generator) -> dd.DistilledData:
    """What a run of the method starts from; all of it where there is no outer loss."""
    resolved = method.resolve(problem)
    if isinstance(resolved, Synthesis):
        return joined([resolved.piece(n, problem, generator) for n in range(resolved.pieces(problem))])
    return resolved.init(problem, generator)[0]


def step_of(
    method: Method, data: dd.DistilledData, problem: Problem, state: State, generator: torch.Generator, at: float = 0.0
) -> Step:
    """One outer step as the loop takes it, when the share `at` of the run is done."""
    method = method.resolve(problem)
    return method.step(data, state, Context(problem, plan(method, problem), at), generator)

"""What all tests share: data, trained networks, and the check of array shapes when DATADISTILL_SHAPES asks for it."""

# Before PyTorch, so that DATADISTILL_ISA is heard.
import datadistill.utils.before_torch  # isort: skip

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

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
    from datadistill.report import curve
    from datadistill.utils.files import write_atomically

ROOT = Path(__file__).parent.parent

# Whatever started the tests may have had these ignored, as a shell does in the background, and programs inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (getattr(signal, "SIGHUP", 0), signal.SIG_DFL)):
    if number and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _curves_are_drawn_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs end with a copy of one curve: drawing is most of what ends a short one. `report/test_curve.py` draws."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("datadistill.report.card.save_curve", _copied(tmp_path_factory.mktemp("drawn") / "curve.png"))
        yield


def _copied(drawn: Path) -> Callable[[list[dict[str, Any]], Path], None]:
    def save_curve(metrics: list[dict[str, Any]], path: Path) -> None:
        if metrics and not drawn.exists():
            curve.save_curve(metrics, drawn)
        if metrics:
            write_atomically(path, drawn.read_bytes())

    return save_curve


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

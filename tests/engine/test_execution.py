"""Compiled and captured second derivatives: the same numbers, or a warning and the eager ones."""

import shutil
import warnings

import pytest
import torch
from torch import Tensor, nn

import datadistill as dd
from datadistill.inner import SGD, Engine, InnerStep, hypergradient, make_network
from datadistill.inner.functional import Weights
from datadistill.models.mlp import MLP
from datadistill.runtime import stream


def run(module: nn.Module, engine: Engine, device: str = "cpu") -> tuple[Tensor, Tensor]:
    draw = stream(0)
    network = make_network(module.double().to(device))

    def drawn(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=draw).double().to(device)

    weights = {name: 0.3 * drawn(p.shape) for name, p in network.module.named_parameters()}
    target = {name: drawn(w.shape) for name, w in weights.items()}
    images, labels = drawn(torch.Size((2, 3, 1, 4, 4))), torch.arange(3, device=device)
    rate = torch.tensor(0.1, dtype=torch.float64, device=device)
    steps = [InnerStep(images[t % 2], labels, rate, t % 2) for t in range(4)]

    def outer(last: Weights) -> tuple[Tensor, Weights]:
        return torch.stack([(last[name] * target[name]).sum() for name in last]).sum(), target

    found = hypergradient(network, SGD(), weights, steps, outer, engine)
    return torch.stack([found.images[0], found.images[1]]), found.rates


EAGER = Engine("recompute", "reverse", "eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="PyTorch's compiler needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("storage", ["recompute", "checkpoint"])
def test_compiled_gives_the_same_numbers(storage: str) -> None:
    expected = run(MLP(3, 1, 4, width=8), EAGER)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = run(MLP(3, 1, 4, width=8), Engine(storage, "forward", "compiled"))
    assert torch.allclose(found[0], expected[0], rtol=1e-9, atol=1e-13)
    assert torch.allclose(found[1], expected[1], rtol=1e-9, atol=1e-13)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_graph_without_cuda_warns_once_and_runs_eagerly() -> None:
    expected = run(MLP(3, 1, 4, width=8), EAGER)
    with pytest.warns(RuntimeWarning, match="execution graph failed") as told:
        found = run(MLP(3, 1, 4, width=8), Engine("recompute", "reverse", "graph"))
    assert len(told) == 1
    assert torch.equal(found[0], expected[0])


def test_what_differs_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    from datadistill.inner import execution

    monkeypatch.setattr(execution, "_compile", lambda flat, given: lambda t: [1.1 * value for value in flat(t)])
    expected = run(MLP(3, 1, 4, width=8), EAGER)
    with pytest.warns(RuntimeWarning, match="differs from running eagerly by 1.0e-01") as told:
        found = run(MLP(3, 1, 4, width=8), Engine("recompute", "reverse", "compiled"))
    assert len(told) == 1
    assert torch.equal(found[0], expected[0])


@pytest.mark.filterwarnings("ignore:execution")
def test_dropout_is_run_eagerly() -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.SiLU(), nn.Dropout(0.4), nn.Linear(12, 3))
    assert torch.equal(run(body, Engine("recompute", "reverse", "graph"))[0], run(body, EAGER)[0])


def test_full_storage_has_no_place_for_other_executions() -> None:
    with pytest.raises(dd.RequestError, match="storage full"):
        Engine("full", "reverse", "compiled")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_captured_graph_gives_the_same_numbers() -> None:
    expected = run(MLP(3, 1, 4, width=8), EAGER, "cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = run(MLP(3, 1, 4, width=8), Engine("recompute", "reverse", "graph"), "cuda")
    assert torch.allclose(found[0], expected[0], rtol=1e-9, atol=1e-13)
    assert torch.allclose(found[1], expected[1], rtol=1e-9, atol=1e-13)

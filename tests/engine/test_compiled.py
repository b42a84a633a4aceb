"""Compiled second derivatives and captured outer steps: the same numbers, or a warning and the eager ones."""

import shutil
import warnings

import pytest
import torch
from torch import Tensor, nn

import datadistill as dd
from datadistill.engine import (
    SGD,
    Adam,
    Engine,
    Hypergradient,
    InnerStep,
    Optimizer,
    OuterLoss,
    compiled,
    make_network,
    outer_step,
)
from datadistill.engine.functional import Network, Weights, batch_gradient
from datadistill.models.mlp import MLP
from datadistill.utils.runtime import stream


def run(module: nn.Module, engine: Engine, device: str = "cpu") -> tuple[Tensor, Tensor]:
    found = Step(make_network(module.double().to(device)), 0, device)(engine)
    return torch.stack([found.images[0], found.images[1]]), found.rates


class Step:
    """An outer step of one network; another seed gives other weights, images, labels, rates and real images."""

    def __init__(self, network: Network, seed: int, device: str = "cpu", soft: bool = False) -> None:
        draw = stream(seed)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw).double().to(device)

        self.network, self.soft = network, soft
        self.weights = {name: 0.3 * drawn(*p.shape) for name, p in network.module.named_parameters()}
        images, labels = drawn(2, 3, 1, 4, 4), (torch.arange(3) + seed).to(device) % 3
        targets = [drawn(3, 3).softmax(1) for _ in range(2)] if soft else [labels, labels]
        rates = (0.1 + 0.01 * drawn(4)).unbind()
        self.steps = [InnerStep(images[t % 2], targets[t % 2], rate, t % 2) for t, rate in enumerate(rates)]
        self.around = [drawn(6, 1, 4, 4), labels.repeat(2)]

    def __call__(self, engine: Engine, optimizer: Optimizer | None = None) -> Hypergradient:
        def outer(last: Weights, images: Tensor, labels: Tensor) -> tuple[Tensor, Weights]:
            return batch_gradient(self.network, last, images, labels, 4)

        loss = OuterLoss(outer, self.around)
        return outer_step(self.network, optimizer or SGD(), self.weights, self.steps, loss, engine)


def same(one: Hypergradient, other: Hypergradient) -> bool:
    pairs = [(one.loss, other.loss), (one.rates, other.rates)]
    for mine, its in ((one.images, other.images), (one.labels, other.labels)):
        assert mine.keys() == its.keys()
        pairs += [(mine[number], its[number]) for number in mine]
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-13) for a, b in pairs)


def static(flat: compiled.Flat, given: list[Tensor]) -> compiled.Flat:
    """What a captured graph is to its caller: work at fixed addresses, into which the values are copied."""
    inputs = [tensor.clone() for tensor in given]

    def run(tensors: list[Tensor]) -> list[Tensor]:
        for to, tensor in zip(inputs, tensors, strict=True):
            to.copy_(tensor)
        return [output.clone() for output in flat(inputs)]

    return run


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
    monkeypatch.setattr(compiled, "_compile", lambda flat, given: lambda t: [1.1 * value for value in flat(t)])
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


@pytest.mark.parametrize("storage", ["full", "recompute", "checkpoint"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("optimizer", [SGD(), SGD(momentum=0.9), Adam()], ids=["sgd", "momentum", "adam"])
def test_everything_that_changes_is_copied_into_a_graph(
    storage: str, soft: bool, optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[None] = []
    monkeypatch.setattr(compiled, "_capture", lambda flat, given: built.append(None) or static(flat, given))
    network = make_network(MLP(3, 1, 4, width=8).double())
    for seed in range(3):
        step = Step(network, seed, soft=soft)
        found = step(Engine(storage, "reverse", "graph"), optimizer)
        assert same(found, step(Engine(storage, "reverse", "eager"), optimizer))
    assert len(built) == 1, "it is captured once"


def test_a_value_that_was_baked_into_a_graph_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def baked(flat: compiled.Flat, given: list[Tensor]) -> compiled.Flat:
        last = given[-2].clone()  # the real images
        return lambda tensors: flat([*tensors[:-2], last, tensors[-1]])

    monkeypatch.setattr(compiled, "_capture", baked)
    step = Step(make_network(MLP(3, 1, 4, width=8).double()), 0)
    with pytest.warns(RuntimeWarning, match="execution graph differs from running eagerly"):
        found = step(Engine("recompute", "reverse", "graph"))
    assert same(found, step(EAGER))


def test_few_graphs_are_kept_and_all_can_be_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[None] = []
    monkeypatch.setattr(compiled, "_capture", lambda flat, given: built.append(None) or static(flat, given))
    network, draw = make_network(MLP(3, 1, 4, width=8).double()), stream(0)

    def replay(size: int) -> None:
        given = [torch.randn(size, generator=draw)]
        assert torch.equal(compiled.replayed(network, "double", lambda t: [2 * t[0]], given)[0], 2 * given[0])

    for size in (1, 2, 3, 4, 5):
        replay(size)
    replay(5)
    assert len(built) == 5
    replay(1)
    assert len(built) == 6, "the oldest was given up"
    compiled.forget(network)
    replay(5)
    assert len(built) == 7


def test_memory_that_runs_out_while_capturing_is_no_reason_to_run_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(flat: compiled.Flat, given: list[Tensor]) -> compiled.Flat:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(compiled, "_capture", full)
    with pytest.raises(torch.OutOfMemoryError):
        Step(make_network(MLP(3, 1, 4, width=8).double()), 0)(Engine("recompute", "reverse", "graph"))


@pytest.mark.parametrize(("storage", "hvp"), [("offload", "reverse"), ("recompute", "difference")])
def test_what_needs_the_host_cannot_be_captured(storage: str, hvp: str) -> None:
    with pytest.raises(dd.RequestError, match="needs the host: choose execution eager"):
        Engine(storage, hvp, "graph")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_captured_graph_gives_the_same_numbers() -> None:
    network = make_network(MLP(3, 1, 4, width=8).double().to("cuda"))
    for seed in range(3):
        step = Step(network, seed, "cuda")
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            found = step(Engine("recompute", "reverse", "graph"))
        assert same(found, step(EAGER))

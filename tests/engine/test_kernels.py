"""The fast operations against PyTorch's: values and three derivatives, for many shapes."""

import copy
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import datadistill as dd
from datadistill.distillation.run_folder import RunFolder
from datadistill.engine import SGD, Engine, InnerStep, hypergradient, kernels, make_network
from datadistill.engine.functional import Weights
from datadistill.engine.kernels import OPERATIONS, Measured, chosen, fitted, library
from datadistill.engine.surrogate import widened
from datadistill.models.convnet import ConvNet
from datadistill.models.init import draw_weights
from datadistill.models.lenet import LeNet
from datadistill.utils import files
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream

built = pytest.mark.skipif(bool(kernels.build()), reason=f"no operations of ours here: {kernels.build()}")


def derivatives(layer: nn.Module, images: Tensor) -> list[Tensor]:
    """A smooth function of the layer's value, and three derivatives, each along fixed random directions."""
    layer.to(images.dtype)
    leaves = [images.detach().requires_grad_(), *layer.parameters()]
    last = [torch.tanh(layer(leaves[0]) / 4)]
    found, draw = list(last), stream(1)
    for _ in range(3):
        along = [torch.randn(t.shape, generator=draw, dtype=torch.float64).to(t.dtype) for t in last]
        total = torch.stack([(t * a).sum() for t, a in zip(last, along, strict=True)]).sum()
        last = list(torch.autograd.grad(total, leaves, create_graph=True))
        found += last
    return [tensor.detach() for tensor in found]


def compare(layer: nn.Module, images: Tensor) -> None:
    fast = fitted(nn.Sequential(layer), OPERATIONS)
    agree(derivatives(fast, images), derivatives(layer, images.double()))


def agree(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        scale = max(float(other.norm()), 0.1)
        assert float((one.double() - other).norm()) / scale < 2e-5


def covering(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Few combinations, in which each two values of two axes meet."""

    def pairs(case: tuple[Any, ...]) -> set[Any]:
        return set(itertools.combinations(enumerate(map(repr, case)), 2))

    cases = list(itertools.product(*axes))
    missing, found = set[Any]().union(*map(pairs, cases)), []
    while missing:
        found.append(max(cases, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(found[-1])
    return found


AXES: tuple[Sequence[Any], ...] = (
    (1, 3),
    (1, 5),
    (1, 6, 17),
    ((5, 5), (3, 2), (1, 4)),
    ((0, 0), (2, 1), (6, 5)),
    ((9, 11),),
)
SHAPES = [
    *covering(*AXES),
    (17, 2, 9, (5, 5), (2, 2), (28, 28)),
    (2, 20, 15, (3, 3), (1, 1), (8, 33)),
    (1, 1, 1, (7, 7), (0, 0), (7, 7)),
    (3, 16, 17, (3, 3), (1, 1), (6, 5)),
    (2, 20, 16, (5, 3), (2, 0), (7, 8)),
    (2, 3, 118, (3, 3), (1, 1), (5, 13)),
    (1, 4, 64, (3, 3), (3, 3), (6, 7)),
    (2, 2, 32, (1, 4), (0, 5), (3, 8)),
    (18, 3, 16, (5, 7), (2, 0), (11, 9)),
    (2, 2, 8, (2, 2), (0, 0), (3, 3)),
]
Convolved = tuple[int, int, int, tuple[int, int], tuple[int, int], tuple[int, int]]


def check_convolution(shape: Convolved, last: bool) -> None:
    n, channels, out, kernel, padding, size = shape
    torch.manual_seed(0)
    images = torch.randn(n, channels, *size)
    layer: Any = fitted(nn.Conv2d(channels, out, kernel, padding=padding, bias=n == 1), OPERATIONS)
    layer.is_ours, layer.is_normalised = (lambda images: True), last
    found = derivatives(layer, images)
    plain = nn.Conv2d(channels, out, kernel, padding=padding, bias=n == 1).double()
    plain.load_state_dict(layer.state_dict())
    agree(found, derivatives(plain, images.double()))
    assert layer.float()(images).is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@built
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution(shape: Convolved, last: bool) -> None:
    check_convolution(shape, last)


@built
@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", list(itertools.product(*AXES)), ids=str)
def test_convolution_in_all_combinations(shape: Convolved, last: bool) -> None:
    check_convolution(shape, last)


def normalised(
    images: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, relu: bool, pool: bool
) -> Tensor:
    """What the operation stands for, from PyTorch's."""
    values = nn.functional.group_norm(images, groups, weight, bias, 1e-5)
    values = nn.functional.relu(values) if relu else values
    return nn.functional.avg_pool2d(values, 2) if pool else values


def twice(
    function: Callable[..., Tensor], leaves: list[Tensor], groups: int, relu: bool, pool: bool, keep: bool
) -> list[Tensor]:
    """The value and two derivatives along fixed directions, of the leaves and of what reaches the value."""
    value = function(*[*leaves, None, None][:3], groups, relu, pool)
    draw = stream(3)
    directions = [torch.randn(t.shape, generator=draw, dtype=torch.float64).to(t.dtype) for t in (value, *leaves)]
    behind = directions[0].requires_grad_()
    first = torch.autograd.grad(value, leaves, behind, create_graph=True)
    second = torch.autograd.grad(first, [*leaves[:2], behind], directions[1:], create_graph=keep)
    return [tensor.detach() for tensor in (value, *first, *second)]


NORMS = [
    *itertools.product(((2, 6, 4, 8), (1, 12, 6, 2), (3, 70, 2, 6)), (1, 2, None)),
    ((2, 10, 5, 3), 5),
    ((3, 128, 8, 8), 4),
    ((2, 96, 4, 4), None),
    ((1, 16, 1, 1), 2),
    ((1, 1, 3, 7), 1),
]


@built
@pytest.mark.parametrize(("case", "then", "affine"), covering(NORMS, ("", "relu", "pool", "relu pool"), (True, False)))
def test_group_norm(case: tuple[tuple[int, int, int, int], int | None], then: str, affine: bool) -> None:
    """Both ways to the second derivative: the operation, and PyTorch's where a third may follow."""
    shape, groups = case
    relu, pool = "relu" in then, "pool" in then
    if pool and (shape[2] % 2 or shape[3] % 2):
        pytest.skip("pooling would leave pixels over")
    draw = stream(0)
    images = 2 * torch.randn(shape, generator=draw, dtype=torch.float64) + 1
    numbers = [torch.randn(shape[1], generator=draw, dtype=torch.float64) for _ in range(2 * affine)]
    leaves = [tensor.float() for tensor in (images, *numbers)]

    def ours(x: Tensor, w: Tensor | None, b: Tensor | None, g: int, relu: bool, pool: bool) -> Tensor:
        layer = fitted(nn.GroupNorm(g, shape[1], affine=affine), OPERATIONS)
        layer._parameters.update(weight=w, bias=b)  # type: ignore[arg-type]
        return layer.fused(x, relu, pool)  # type: ignore[operator,no-any-return]

    for keep in (False, True):
        found, expected = (
            twice(f, [t.to(d).requires_grad_() for t in leaves], groups or shape[1], relu, pool, keep)
            for f, d in ((ours, torch.float32), (normalised, torch.float64))
        )
        for one, other in zip(found, expected, strict=True):
            assert float((one.double() - other).norm()) / max(float(other.norm()), 1.0) < 2e-5


@built
@pytest.mark.parametrize("groups", [1, 3, 12])
def test_group_norm_has_a_third_derivative(groups: int) -> None:
    images = torch.randn(3, 12, 4, 6, generator=stream(0))
    compare(nn.GroupNorm(groups, 12), images)
    compare(nn.GroupNorm(groups, 12, affine=False), images)
    compare(nn.Sequential(nn.GroupNorm(groups, 12), nn.ReLU(), nn.AvgPool2d(2)), images)


def calls_of(module: nn.Module, images: Tensor) -> list[str]:
    """The names of the operations that a module runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        module(images)
    return [event.name for event in profile.events()]


@built
def test_what_follows_normalisation_is_taken_along() -> None:
    images = torch.randn(2, 3, 8, 8, generator=stream(0))
    block = nn.Sequential(nn.Conv2d(3, 24, 3), nn.GroupNorm(24, 24), nn.ReLU(), nn.AvgPool2d(2))
    expected = block(images)
    fast = fitted(copy.deepcopy(block), OPERATIONS)
    assert torch.allclose(fast(images), expected, atol=1e-5)
    names = calls_of(fast, images)
    assert "datadistill::group_norm" in names
    assert not {"aten::relu", "aten::avg_pool2d", "aten::native_group_norm"} & set(names)
    # Who asks for ReLU's derivative to be another must get it, and who hooks into a layer must be called.
    with widened(0.5):
        assert torch.allclose(fast(images), expected, atol=1e-5)
        assert "_ReLU" in calls_of(fast, images)
    seen = []
    fast[2].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    assert torch.allclose(fast(images), expected, atol=1e-5)
    assert len(seen) == 1


@built
@pytest.mark.parametrize("width", [0.0, 0.3])
def test_a_convnet_is_differentiated_as_by_torch(width: float) -> None:
    module = ConvNet(10, 1, 28, depth=2, width=20)
    draw = stream(0)
    weights = {n: w.to(torch.float32) for n, w in draw_weights(module, "xavier", draw).items()}
    images, labels = torch.randn(6, 1, 28, 28, generator=draw), torch.arange(6)
    target = {n: torch.randn(w.shape, generator=draw) for n, w in weights.items()}
    found = []
    for operations, dtype in (("all", torch.float32), ("off", torch.float64)):
        network = make_network(copy.deepcopy(module).to(dtype), operations=operations)
        start, aim = ({n: t.to(dtype) for n, t in part.items()} for part in (weights, target))

        def outer(final: Weights, aim: Weights = aim) -> tuple[Tensor, Weights]:
            return torch.stack([(final[n] * aim[n]).sum() for n in final]).sum(), aim

        steps = [InnerStep(images.to(dtype), labels, torch.tensor(0.01, dtype=dtype), 0) for _ in range(2)]
        engine = Engine("recompute", "reverse", "eager", inner_chunk=4)
        found.append(hypergradient(network, SGD(), start, steps, outer, engine, width))
    for one, other in ((found[0].images[0], found[1].images[0]), (found[0].rates, found[1].rates)):
        assert float((one.double() - other).norm() / other.norm()) < 1e-4


@built
def test_shared_out_among_cores() -> None:
    images = torch.randn(24, 3, 32, 32, generator=stream(0))
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for layer in (nn.Conv2d(3, 20, 5), nn.Conv2d(3, 5, 5), nn.Conv2d(3, 16, 5), nn.MaxPool2d(3, 2, 1)):
            compare(layer, images)
        compare(nn.GroupNorm(64, 128), torch.randn(6, 128, 16, 16, generator=stream(2)))
    finally:
        torch.set_num_threads(threads)


@built
@pytest.mark.parametrize("size", [(28, 28), (10, 10), (7, 9), (2, 2), (5, 70), (3, 64)])
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1), (3, 2, 0), (3, 3, 1), (2, 1, 1), (5, 4, 2), (2, 3, 0)])
@pytest.mark.parametrize("kind", ["random", "ties", "nan"])
def test_max_pooling(kind: str, window: tuple[int, int, int], size: tuple[int, int]) -> None:
    kernel, stride, padding = window
    if min(size) + 2 * padding < kernel:
        pytest.skip("the window is larger than the image")
    images = torch.randn(3, 2, *size, generator=stream(0))
    if kind == "ties":
        images = images.round()
    if kind == "nan":
        images[torch.rand(images.shape, generator=stream(1)) < 0.1] = torch.nan
    layer = nn.MaxPool2d(kernel, stride, padding)
    expected = layer(images)
    assert torch.equal(fitted(nn.Sequential(layer), OPERATIONS)(images).nan_to_num(7), expected.nan_to_num(7))
    if kind != "nan":
        compare(nn.MaxPool2d(kernel, stride, padding), images)


@built
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1)])
def test_the_first_of_equals_counts_even_if_it_is_infinitely_small(window: tuple[int, int, int]) -> None:
    images = torch.full((2, 1, 9, 40), -torch.inf).requires_grad_()
    layer = nn.MaxPool2d(*window)
    (expected,) = torch.autograd.grad(layer(images).sum(), images)
    (found,) = torch.autograd.grad(fitted(nn.Sequential(layer), OPERATIONS)(images).sum(), images)
    assert torch.equal(found, expected)


@built
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 7, 5), (10, 400, 120), (16, 17, 33)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(size: tuple[int, int, int], bias: bool) -> None:
    images, inputs, outputs = size
    compare(nn.Linear(inputs, outputs, bias=bias), torch.randn(images, inputs, generator=stream(0)))


@built
def test_large_products_are_left_to_torch() -> None:
    fast = fitted(nn.Sequential(nn.Linear(400, 120)), OPERATIONS)
    for images, ours in ((21, True), (22, False)):
        assert ("datadistill::linear" in calls_of(fast, torch.randn(images, 400))) is ours


LAYERS = {
    "convolution": (nn.Conv2d(2, 3, 3), (2, 2, 6, 6)),
    "linear": (nn.Linear(5, 3), (2, 5)),
    "pooling": (nn.MaxPool2d(2), (2, 2, 6, 6)),
}


@built
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "pooling"])
@pytest.mark.parametrize("which", ["images", "weight", "bias"])
def test_what_has_no_derivative_gets_none(name: str, which: str) -> None:
    """Of one input alone, a frozen layer's images among them."""
    found = []
    for fast in (True, False):
        layer = copy.deepcopy(LAYERS[name][0]).requires_grad_(False)
        images = torch.randn(LAYERS[name][1], generator=stream(0))
        leaf = {"images": images, "weight": layer.weight, "bias": layer.bias}[which].requires_grad_()
        value = torch.tanh(fitted(nn.Sequential(layer), OPERATIONS if fast else ())(images))
        (first,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        found.append((first, second))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@built
@pytest.mark.parametrize("name", LAYERS)
def test_graphs_are_as_torch_keeps_them(name: str) -> None:
    """None where nobody wants one, gone after one walk back, and refused where its tensors have changed."""
    layer, shape = LAYERS[name]
    fast, images = fitted(nn.Sequential(copy.deepcopy(layer)), OPERATIONS), torch.randn(shape, generator=stream(0))
    with torch.no_grad():
        assert fast(images.clone().requires_grad_()).grad_fn is None
    assert fast.requires_grad_(False)(images).grad_fn is None
    value = fast(images.requires_grad_())
    torch.autograd.grad(value.sum(), images)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(value.sum(), images)
    if name != "pooling":
        value = fast(images)
        fast[0].weight.add_(1.0)  # type: ignore[operator]
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(value.sum(), images)


@built
def test_large_batches_have_an_operation_of_their_own() -> None:
    few, many = (fitted(nn.Conv2d(6, 16, 5), (name,)) for name in ("small-batch", "some-channels"))
    assert [few.is_ours(n) for n in (1, 16, 17, 64)] == [True, True, False, False]  # type: ignore[operator]
    assert [many.is_ours(n) for n in (1, 16, 17, 64)] == [False, False, True, True]  # type: ignore[operator]


@built
@pytest.mark.parametrize("change", ["transposed", "sliced", "expanded", "channels last"])
def test_any_memory_layout(change: str) -> None:
    images = torch.randn(4, 3, 12, 12, generator=stream(0))
    images = {
        "transposed": images.transpose(2, 3),
        "sliced": images[1:, :, ::2, 1:],
        "expanded": images[:1].expand(4, 3, 12, 12),
        "channels last": images.contiguous(memory_format=torch.channels_last),
    }[change]
    compare(nn.Conv2d(3, 5, 3, padding=1), images)
    compare(nn.MaxPool2d(2), images)
    compare(nn.GroupNorm(3, 3), images)
    compare(nn.Sequential(nn.Conv2d(3, 20, 3, padding=1), nn.GroupNorm(4, 20)), images)


@built
def test_what_does_not_fit_is_left_to_torch() -> None:
    for layer, images in (
        (nn.Conv2d(3, 4, 3, stride=2), torch.randn(2, 3, 8, 8)),
        (nn.Conv2d(3, 4, 3, padding="same"), torch.randn(2, 3, 8, 8)),
        (nn.Conv2d(4, 4, 3, groups=2, dilation=2), torch.randn(2, 4, 8, 8)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), torch.randn(2, 3, 8, 8)),
        (nn.Conv2d(3, 4, 3), torch.randn(0, 3, 8, 8)),
        (nn.Conv2d(3, 4, 3), torch.randn(3, 8, 8)),
        (nn.MaxPool2d(2, ceil_mode=True), torch.randn(2, 3, 7, 7)),
        (nn.MaxPool2d((2, 3)), torch.randn(2, 3, 6, 6)),
        (nn.Linear(3, 4), torch.randn(2, 5, 3)),
        (nn.Linear(3, 4), torch.randn(0, 3)),
        (nn.GroupNorm(2, 4), torch.randn(3, 4)),
        (nn.GroupNorm(2, 4), torch.randn(0, 4, 3, 3)),
        (nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU()), torch.randn(3, 4, 5)),
    ):
        expected = layer(images)
        assert torch.equal(fitted(nn.Sequential(layer), OPERATIONS)(images), expected)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for layer in (nn.Conv2d(3, 4, 3), nn.GroupNorm(1, 3), nn.MaxPool2d(2)):
        double = layer.double()
        expected = double(images)
        assert torch.equal(fitted(nn.Sequential(double), OPERATIONS)(images), expected)


@built
def test_a_network_uses_them_and_its_module_stays_as_it_was() -> None:
    module = LeNet()
    network = make_network(module, operations="all")
    assert network.operations == OPERATIONS
    weights = {name: p.detach() for name, p in module.named_parameters()}
    images = torch.randn(5, 1, 28, 28, generator=stream(0))
    assert torch.allclose(network.logits(weights, images), module(images), atol=1e-5)
    assert type(module.conv1) is nn.Conv2d


@built
def test_several_threads_at_once() -> None:
    network = make_network(LeNet(), operations="all")
    images = [torch.randn(6, 1, 28, 28, generator=stream(i)) for i in range(4)]
    own = [
        {n: torch.randn(p.shape, generator=stream(i)) for n, p in network.module.named_parameters()} for i in range(4)
    ]
    expected = [network.logits(w, x) for w, x in zip(own, images, strict=True)]
    wrong: list[int] = []

    def work(i: int) -> None:
        torch.set_num_threads(1)
        if not all(torch.equal(network.logits(own[i], images[i]), expected[i]) for _ in range(50)):
            wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"DATADISTILL_NATIVE": "0"}, "DATADISTILL_NATIVE is 0"),
        ({"PATH": "", "CXX": ""}, "there is no C++ compiler"),
        ({"CXX": "false"}, "the C++ compiler failed"),
    ],
    ids=["off", "no compiler", "a compiler that fails"],
)
def test_without_them(settings: dict[str, str], reason: str, tmp_path: Path) -> None:
    code = "from datadistill.engine import kernels; print(kernels.build())"
    environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", **settings}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert reason in done.stdout


def test_what_is_used_was_measured_to_be_right_and_faster() -> None:
    found = {
        "normalisation": Measured(0.5, 1e-6),
        "max-pooling": Measured(0.95, 0.0),
        "few-channels": Measured(0.5, 0.1),
    }
    assert chosen("auto", found) == ("normalisation",)
    assert chosen("all", found) == tuple(found)
    assert chosen("max-pooling,small-batch", found) == ("max-pooling",)
    assert chosen("off", found) == chosen("auto", {}) == chosen("all", {}) == ()
    with pytest.raises(RequestError, match="unknown kernel 'pooling'"):
        Engine(kernels="pooling")


@built
def test_every_operation_was_measured_and_is_right() -> None:
    found = kernels.measured()
    assert tuple(found) == OPERATIONS
    assert all(one.ratio > 0 and one.error < 1e-4 for one in found.values())


def lenet_run(real: dd.RealData, out: Path, **options: Any) -> dd.Run:
    method = dd.methods.DD(batch=16, images="mean")
    outer = dd.Outer(eval_every=2)
    return dd.distill(real, method, model="lenet", iterations=4, outer=outer, device="cpu", out=out, **options)


@built
def test_a_run_goes_on_with_the_operations_that_it_was_started_with(
    mnist: dd.RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(mnist, train=mnist.train.take(torch.arange(400)))
    whole = lenet_run(few, tmp_path / "whole", engine=Engine(kernels="few-channels")).distilled
    assert RunFolder(tmp_path / "whole").settings().kernels == ["few-channels"]

    class Stop(Exception):
        pass

    class StopAt:
        def update(self, status: Any) -> None:
            if status.step == 3:
                raise Stop

        def say(self, text: str) -> None:
            pass

    # What `auto` takes may change, as when the library is built and measured again.
    measured = {name: Measured(0.5 if name == "few-channels" else 0.95, 0.0) for name in OPERATIONS}
    monkeypatch.setattr(kernels, "measured", lambda: measured)
    with pytest.raises(Stop):
        lenet_run(few, tmp_path / "cut", reporter=StopAt())
    monkeypatch.setattr(kernels, "measured", lambda: {name: Measured(0.5, 0.0) for name in OPERATIONS})
    resumed = lenet_run(few, tmp_path / "cut", resume=True).distilled
    assert torch.equal(whole.images, resumed.images)


@pytest.mark.parametrize(
    ("isa", "expected"), [("avx2", "avx2 AVX2 1000"), ("", "None None 1000"), ("sse", "can only be avx2")]
)
def test_instructions_are_chosen_before_torch_is_loaded(isa: str, expected: str) -> None:
    code = """
import os, sys
try:
    import datadistill
    print(*(os.environ.get(n) for n in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "GOMP_SPINCOUNT")))
except ValueError as error:
    print(error)
"""
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["DATADISTILL_ISA"] = isa
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert expected in done.stdout


@pytest.mark.parametrize(("isa", "expected"), [("avx2", "DATADISTILL_ISA came too late"), ("", "")])
def test_instructions_that_are_chosen_too_late_are_a_warning(isa: str, expected: str) -> None:
    environment = {**os.environ, "DATADISTILL_ISA": isa}
    code = [sys.executable, "-c", "import torch, datadistill"]
    done = subprocess.run(code, env=environment, capture_output=True, text=True, check=True)
    assert expected in done.stderr
    assert ("RuntimeWarning" in done.stderr) == bool(expected)


@built
def test_operations_are_used_as_soon_as_they_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that asked before they were built, as every first run does, must not remember the answer."""
    with monkeypatch.context() as before:
        before.setattr(library, "ready", lambda: False)
        assert make_network(LeNet(), operations="all").operations == ()
    assert make_network(LeNet(), operations="all").operations == OPERATIONS


def test_a_library_that_others_could_have_written_is_not_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "native"
    assert not library._is_whole(folder)
    folder.mkdir(mode=0o700)
    (folder / "operations.so").write_bytes(b"half of it")
    assert not library._is_whole(folder)
    (folder / "measured.json").write_text(json.dumps({"library": library._digest(folder)}))
    assert library._is_whole(folder)
    (folder / "operations.so").write_bytes(b"something else")
    assert not library._is_whole(folder)


def _whole(folder: Path) -> None:
    """A folder as the compiler leaves it."""
    folder.mkdir(mode=0o700, parents=True)
    (folder / "operations.so").write_bytes(b"a library")
    (folder / "measured.json").write_text(json.dumps({"library": library._digest(folder)}))
    for path in (folder.parent, *folder.iterdir()):
        path.chmod(0o700)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
@pytest.mark.parametrize("name", ["", "native", "native/operations.so", "native/measured.json"])
def test_a_library_that_others_may_change_is_not_loaded(
    name: str, mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it the folder, a file in it, or a folder above it."""
    monkeypatch.setattr(files, "_is_mine_alone", lambda group: False)
    _whole(tmp_path / "cache" / "native")
    assert library._is_whole(tmp_path / "cache" / "native")
    (tmp_path / "cache" / name).chmod(mode)
    with pytest.raises(library._CannotBeHad, match="others may write to"):
        library._is_whole(tmp_path / "cache" / "native")
    (tmp_path / "cache" / name).chmod(0o700)
    assert library._is_whole(tmp_path / "cache" / "native")


@pytest.mark.parametrize("members", [[], ["me"], ["me", "you"], ["you"]])
def test_a_group_of_one_is_nobody_else(members: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a umask of 002 and a group for each user, as many systems have it."""
    monkeypatch.setattr(files.pwd, "getpwuid", lambda user: SimpleNamespace(pw_name="me"))
    monkeypatch.setattr(files.grp, "getgrgid", lambda group: SimpleNamespace(gr_name="me", gr_mem=members))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o775)
    found = files.who_else(tmp_path / "cache")
    assert ("others may write" in found) == ("you" in members)


def test_nothing_is_built_where_others_may_write(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(library._CannotBeHad, match="others may write to"):
        library._is_whole(tmp_path / "cache" / "not yet")


@pytest.mark.parametrize("name", ["native", "native/operations.so", "native/measured.json"])
def test_a_library_that_is_a_link_is_not_loaded(name: str, tmp_path: Path) -> None:
    _whole(tmp_path / "cache" / "native")
    (tmp_path / "cache" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "cache" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(library._CannotBeHad, match="is a link"):
        library._is_whole(tmp_path / "cache" / "native")


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("name", ["", "native", "native/operations.so"])
def test_a_library_of_somebody_else_is_not_loaded(name: str, tmp_path: Path) -> None:
    _whole(tmp_path / "cache" / "native")
    os.chown(tmp_path / "cache" / name, 12345, 12345)
    with pytest.raises(library._CannotBeHad, match="belongs to somebody else"):
        library._is_whole(tmp_path / "cache" / "native")


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root gives files away")
def test_a_cache_by_way_of_somebody_elses_link_is_not_used(tmp_path: Path) -> None:
    _whole(tmp_path / "cache" / "native")
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    assert library._is_whole(tmp_path / "link" / "native")
    os.chown(tmp_path / "link", 12345, 12345, follow_symlinks=False)
    with pytest.raises(library._CannotBeHad, match="link belongs to somebody else"):
        library._is_whole(tmp_path / "link" / "native")

"""The fast operations against PyTorch's: values and three derivatives, for many shapes."""

import copy
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datadistill.inner import SGD, Engine, InnerStep, hypergradient, make_network, native
from datadistill.inner.functional import Weights
from datadistill.inner.kinks import widened
from datadistill.models.alexcifarnet import LocalResponseNorm
from datadistill.models.convnet import ConvNet
from datadistill.models.lenet import LeNet
from datadistill.models.schemes import draw_weights
from datadistill.runtime import stream

pytestmark = pytest.mark.skipif(bool(native.build()), reason=f"no fast operations here: {native.build()}")


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
    fast = native.fitted(nn.Sequential(layer))
    found = derivatives(fast, images)
    expected = derivatives(layer, images.double())
    for one, other in zip(found, expected, strict=True):
        scale = max(float(other.norm()), 0.1)
        assert float((one.double() - other).norm()) / scale < 2e-5


SHAPES = [
    *itertools.product((1, 3), (1, 5), (1, 6, 17), ((5, 5), (3, 2), (1, 4)), ((0, 0), (2, 1), (6, 5)), ((9, 11),)),
    (17, 2, 9, (5, 5), (2, 2), (28, 28)),
    (2, 20, 15, (3, 3), (1, 1), (8, 33)),
    (1, 1, 1, (7, 7), (0, 0), (7, 7)),
    (3, 16, 17, (3, 3), (1, 1), (6, 5)),
    (2, 20, 16, (5, 3), (2, 0), (7, 8)),
    (2, 3, 118, (3, 3), (1, 1), (5, 13)),
    (1, 4, 64, (3, 3), (3, 3), (6, 7)),
    (2, 2, 32, (1, 4), (0, 5), (3, 8)),
]


@pytest.mark.parametrize("last", [False, True], ids=["", "channels last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution(
    shape: tuple[int, int, int, tuple[int, int], tuple[int, int], tuple[int, int]], last: bool
) -> None:
    n, channels, out, kernel, padding, size = shape
    torch.manual_seed(0)
    images = torch.randn(n, channels, *size)
    layer: Any = nn.Conv2d(channels, out, kernel, padding=padding, bias=n == 1)
    layer.channels_last = last
    compare(layer, images)
    assert layer.float()(images).is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (10, 84, 10), (6, 64, 5), (3, 800, 7), (33, 17, 9), (70, 40, 3), (2, 1600, 21)], ids=str
)
def test_linear(shape: tuple[int, int, int]) -> None:
    n, inputs, outputs = shape
    torch.manual_seed(0)
    compare(nn.Linear(inputs, outputs, bias=n != 6), torch.randn(n, inputs))


@pytest.mark.parametrize("shape", [(2, 7, 5, 5), (3, 64, 4, 4), (1, 3, 8, 3)], ids=str)
@pytest.mark.parametrize("n", [1, 4, 5])
def test_local_response_norm(n: int, shape: tuple[int, int, int, int]) -> None:
    images = 2 * torch.randn(shape, generator=stream(0))
    layer = native.fitted(nn.Sequential(LocalResponseNorm(n, 0.3, 0.75)))
    expected = nn.LocalResponseNorm(n, 0.3, 0.75, 1)(images)
    assert torch.allclose(layer(images), expected, atol=1e-6)
    compare(LocalResponseNorm(n, 0.3, 0.75), images)
    # Without a graph for a third derivative the second has an operation of its own.
    second = []
    for norm, x in ((layer, images), (nn.LocalResponseNorm(n, 0.3, 0.75, 1), images.double())):
        leaf, along = x.requires_grad_(), torch.cos(x.detach()).requires_grad_()
        (first,) = torch.autograd.grad(norm(leaf), leaf, along, create_graph=True)
        second.append(torch.autograd.grad(first, [leaf, along], torch.sin(x.detach())))
    for one, other in zip(*second, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < 1e-6


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("then", ["", "relu", "pool", "relu pool"])
@pytest.mark.parametrize("case", NORMS, ids=str)
def test_group_norm(
    case: tuple[tuple[int, int, int, int], int | None], then: str, affine: bool, dtype: torch.dtype
) -> None:
    """Both ways to the second derivative: the operation, and PyTorch's where a third may follow."""
    shape, groups = case
    relu, pool = "relu" in then, "pool" in then
    if pool and (shape[2] % 2 or shape[3] % 2):
        pytest.skip("pooling would leave pixels over")
    draw = stream(0)
    images = 2 * torch.randn(shape, generator=draw, dtype=torch.float64) + 1
    numbers = [torch.randn(shape[1], generator=draw, dtype=torch.float64) for _ in range(2 * affine)]
    leaves = [tensor.to(dtype) for tensor in (images, *numbers)]

    def native_norm(x: Tensor, w: Tensor | None, b: Tensor | None, g: int, relu: bool, pool: bool) -> Tensor:
        return torch.ops.datadistill.group_norm.default(x, w, b, g, 1e-5, relu, pool)  # type: ignore[no-any-return]

    for keep in (False, True):
        found, expected = (
            twice(f, [t.to(d).requires_grad_() for t in leaves], groups or shape[1], relu, pool, keep)
            for f, d in ((native_norm, dtype), (normalised, torch.float64))
        )
        for one, other in zip(found, expected, strict=True):
            scale = max(float(other.norm()), 1.0)
            assert float((one.double() - other).norm()) / scale < (1e-12 if dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("then", ["", "relu pool"])
def test_group_norm_against_finite_differences(groups: int, then: str) -> None:
    relu, pool = "relu" in then, "pool" in then
    leaves = [torch.randn(s, generator=stream(0), dtype=torch.float64).requires_grad_() for s in ((2, 6, 2, 4), 6, 6)]

    def norm(*leaves: Tensor) -> Tensor:
        return torch.ops.datadistill.group_norm.default(*leaves, groups, 1e-5, relu, pool)  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(norm, leaves)
    assert torch.autograd.gradgradcheck(norm, leaves)


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_group_norm_has_a_third_derivative(groups: int) -> None:
    images = torch.randn(3, 12, 4, 6, generator=stream(0))
    compare(nn.GroupNorm(groups, 12), images)
    compare(nn.GroupNorm(groups, 12, affine=False), images)
    compare(nn.Sequential(nn.GroupNorm(groups, 12), nn.ReLU(), nn.AvgPool2d(2)), images)


def calls_of(module: nn.Module, images: Tensor) -> list[str]:
    """The names of the operations that a module runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        module(images)
    return [event.name for event in profile.events()]


def test_what_follows_normalisation_is_taken_along() -> None:
    images = torch.randn(2, 3, 8, 8, generator=stream(0))
    block = nn.Sequential(nn.Conv2d(3, 24, 3), nn.GroupNorm(24, 24), nn.ReLU(), nn.AvgPool2d(2))
    expected = block(images)
    fast = native.fitted(copy.deepcopy(block))
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


@pytest.mark.parametrize("width", [0.0, 0.3])
def test_a_convnet_is_differentiated_as_by_torch(width: float) -> None:
    module = ConvNet(10, 1, 28, depth=2, width=20)
    draw = stream(0)
    weights = {n: w.to(torch.float32) for n, w in draw_weights(module, "xavier", draw).items()}
    images, labels = torch.randn(6, 1, 28, 28, generator=draw), torch.arange(6)
    target = {n: torch.randn(w.shape, generator=draw) for n, w in weights.items()}
    found = []
    for use_native, dtype in ((True, torch.float32), (False, torch.float64)):
        network = make_network(copy.deepcopy(module).to(dtype), use_native=use_native)
        start, aim = ({n: t.to(dtype) for n, t in part.items()} for part in (weights, target))

        def outer(final: Weights, aim: Weights = aim) -> tuple[Tensor, Weights]:
            return torch.stack([(final[n] * aim[n]).sum() for n in final]).sum(), aim

        steps = [InnerStep(images.to(dtype), labels, torch.tensor(0.01, dtype=dtype), 0) for _ in range(2)]
        engine = Engine("recompute", "reverse", "eager", inner_chunk=4)
        found.append(hypergradient(network, SGD(), start, steps, outer, engine, width))
    for one, other in ((found[0].images[0], found[1].images[0]), (found[0].rates, found[1].rates)):
        assert float((one.double() - other).norm() / other.norm()) < 1e-4


def test_shared_out_among_cores() -> None:
    images, rows = torch.randn(24, 3, 32, 32, generator=stream(0)), torch.randn(10, 900, generator=stream(1))
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for layer in (nn.Conv2d(3, 20, 5), nn.Conv2d(3, 5, 5), nn.MaxPool2d(3, 2, 1), LocalResponseNorm(4, 0.1, 0.75)):
            compare(layer, images)
        compare(nn.GroupNorm(64, 128), torch.randn(6, 128, 16, 16, generator=stream(2)))
        compare(nn.Linear(900, 700), rows)
    finally:
        torch.set_num_threads(threads)


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
    assert torch.equal(native.fitted(nn.Sequential(layer))(images).nan_to_num(7), expected.nan_to_num(7))
    if kind != "nan":
        compare(nn.MaxPool2d(kernel, stride, padding), images)


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
        (LocalResponseNorm(4, 0.1, 0.5), torch.randn(2, 3, 6, 6)),
        (nn.GroupNorm(2, 4), torch.randn(3, 4)),
        (nn.GroupNorm(2, 4), torch.randn(0, 4, 3, 3)),
        (nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU()), torch.randn(3, 4, 5)),
    ):
        expected = layer(images)
        assert torch.equal(native.fitted(nn.Sequential(layer))(images), expected)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for layer in (nn.Conv2d(3, 4, 3), nn.Linear(8, 4), LocalResponseNorm(4, 0.1, 0.75)):
        double, x = layer.double(), images[0, 0] if isinstance(layer, nn.Linear) else images
        expected = double(x)
        assert torch.equal(native.fitted(nn.Sequential(double))(x), expected)


def test_a_network_uses_them_and_its_module_stays_as_it_was() -> None:
    module = LeNet()
    network = make_network(module)
    assert network.native
    weights = {name: p.detach() for name, p in module.named_parameters()}
    images = torch.randn(5, 1, 28, 28, generator=stream(0))
    assert torch.allclose(network.logits(weights, images), module(images), atol=1e-5)
    assert type(module.conv1) is nn.Conv2d


def test_several_threads_at_once() -> None:
    network = make_network(LeNet())
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
    code = "from datadistill.inner import native; print(native.build())"
    environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", **settings}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert reason in done.stdout

"""Counting the jumps of ReLU's derivative: what stays exact, and what the extra term is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datadistill.engine import SGD, Engine, InnerStep, Network, hypergradient
from datadistill.engine.functional import Weights
from datadistill.engine.surrogate import widened
from datadistill.models import draw_weights
from datadistill.models.lenet import LeNet
from datadistill.utils.runtime import stream

ENGINE = Engine("full", "reverse", "eager")
RELUS = [torch.relu, nn.functional.relu, nn.ReLU(), nn.ReLU(inplace=True), lambda z: z.relu()]


@pytest.mark.parametrize("relu", RELUS, ids=["torch", "functional", "module", "inplace", "method"])
def test_values_and_first_derivatives_are_exact(relu: nn.Module) -> None:
    z = torch.randn(1000, generator=stream(0), dtype=torch.float64)
    results = []
    for width in (0.0, 0.5):
        leaf = z.clone().requires_grad_()
        with widened(width):
            value = relu(leaf * 1)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
        results.append((value.detach(), slope))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_the_second_derivative_is_a_triangle_of_area_one() -> None:
    z = torch.linspace(-1, 1, 100_001, dtype=torch.float64).requires_grad_()
    with widened(0.25):
        (slope,) = torch.autograd.grad(torch.relu(z).sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), z)
    assert second.sum().item() * 2 / 100_000 == pytest.approx(1, abs=1e-4)
    assert second[50_000].item() == pytest.approx(4)
    assert second[(z.abs() >= 0.25)].abs().max() == 0


@pytest.mark.parametrize("relu", RELUS, ids=["torch", "functional", "module", "inplace", "method"])
def test_every_way_to_call_relu_is_known(relu: nn.Module) -> None:
    z = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    with widened(0.25):
        (slope,) = torch.autograd.grad(relu(z * 1).sum(), z, create_graph=True)
    assert torch.autograd.grad(slope, z)[0].item() == 4


def test_what_relu_does_in_place_is_seen_by_others() -> None:
    z = torch.tensor([-1.0, 2.0])
    with widened(0.25):
        torch.relu_(z)
        assert z.tolist() == [0, 2]
        assert nn.functional.relu(input=torch.tensor([-3.0])).item() == 0


def lenet_hypergradient(width: float, storage: Any = "full") -> tuple[Tensor, Tensor, Tensor]:
    module = LeNet().double()
    network, draw = Network(module), stream(1)
    weights = draw_weights(module, "xavier", draw)
    images = torch.randn(10, 1, 28, 28, generator=draw, dtype=torch.float64)
    target = {name: torch.randn(w.shape, generator=draw, dtype=torch.float64) for name, w in weights.items()}

    def outer(final: Weights) -> tuple[Tensor, Weights]:
        return torch.stack([(final[name] * target[name]).sum() for name in final]).sum(), target

    steps = [InnerStep(images, torch.arange(10), torch.tensor(0.5, dtype=torch.float64), t) for t in range(2)]
    found = hypergradient(network, SGD(), weights, steps, outer, Engine(storage, "reverse", "eager"), width)
    return found.loss, found.images[0], found.rates


def test_the_outer_loss_does_not_depend_on_the_width() -> None:
    exact, widened_loss = lenet_hypergradient(0.0), lenet_hypergradient(0.3)
    assert torch.equal(exact[0], widened_loss[0])
    assert not torch.allclose(exact[1], widened_loss[1], rtol=1e-2)


def test_a_narrow_triangle_is_the_derivative_almost_everywhere() -> None:
    exact, narrow = lenet_hypergradient(0.0), lenet_hypergradient(1e-12)
    assert torch.allclose(exact[1], narrow[1], rtol=1e-9, atol=1e-12)
    assert torch.allclose(exact[2], narrow[2], rtol=1e-9)


def test_storages_agree() -> None:
    full, recomputed = lenet_hypergradient(0.3), lenet_hypergradient(0.3, "recompute")
    assert torch.allclose(full[1], recomputed[1], rtol=1e-9, atol=1e-12)
    assert torch.allclose(full[2], recomputed[2], rtol=1e-9)


@pytest.mark.repeats
def test_it_follows_the_trend_across_jumps() -> None:
    """One hidden unit, one step: across the kink the trained weight jumps, and only the widened derivative knows.

    The weight after one step on an image x is w1(x) = w0 - rate * c * 1[w0 x + b > 0] * x. Its mean slope over a
    window around the kink comes from finite differences over the window.
    """

    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

        def forward(self, images: Tensor) -> Tensor:
            hidden = torch.relu(self.weight * images.flatten(1) - 1)
            return torch.cat([hidden, torch.zeros_like(hidden)], 1)

    network, width, centres = Network(Unit()), 0.2, torch.linspace(0.9, 1.1, 401, dtype=torch.float64)
    start = {"weight": torch.tensor(1.0, dtype=torch.float64)}

    def outer(final: Weights) -> tuple[Tensor, Weights]:
        return final["weight"].clone(), {"weight": torch.tensor(1.0, dtype=torch.float64)}

    def at(x: float, surrogate_width: float) -> tuple[float, float]:
        image = torch.full((1, 1, 1, 1), x, dtype=torch.float64)
        step = InnerStep(image, torch.tensor([1]), torch.tensor(1.0, dtype=torch.float64), 0)
        found = hypergradient(network, SGD(), start, [step], outer, ENGINE, surrogate_width)
        return float(found.loss), float(found.images[0].sum())

    trend = (at(1.1, 0.0)[0] - at(0.9, 0.0)[0]) / 0.2
    exact = sum(at(float(x), 0.0)[1] for x in centres) / len(centres)
    widened_slope = sum(at(float(x), width / 2)[1] for x in centres) / len(centres)
    assert abs(exact - trend) > 0.8 * abs(trend)
    assert widened_slope == pytest.approx(trend, rel=0.05)

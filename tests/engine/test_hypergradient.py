"""The hypergradient against finite differences in float64, with respect to every image and every rate."""

import pytest
import torch
from torch import Tensor

from datadistill.inner import SGD, STORAGES, Adam, InnerStep, Network, Optimizer, hypergradient, walk
from datadistill.inner.functional import Weights, batch_gradient
from datadistill.models import NORMS, draw_weights
from datadistill.models.convnet import ConvNet
from datadistill.models.lenet import LeNet
from datadistill.models.mlp import MLP
from datadistill.runtime import stream

OPTIMIZERS = [SGD(), SGD(momentum=0.9), Adam()]


class Case:
    """A network, a distilled set of two batches walked twice, and a real batch, all in float64."""

    def __init__(
        self, module: torch.nn.Module, size: int, optimizer: Optimizer, rate: float, shake: float = 0.1
    ) -> None:
        self.network = Network(module.double())
        draw = stream(0, "case")
        drawn = draw_weights(module, "default", draw)
        # Norms start at the identity, where some of their derivatives vanish: move away from it.
        self.weights = {n: w + shake * torch.randn(w.shape, generator=draw, dtype=w.dtype) for n, w in drawn.items()}
        self.optimizer = optimizer
        self.images = torch.randn(2, 3, 1, size, size, generator=draw, dtype=torch.float64)
        self.rates = rate * (1 + torch.rand(4, generator=draw, dtype=torch.float64))
        self.real = torch.randn(7, 1, size, size, generator=draw, dtype=torch.float64)
        self.labels = torch.randint(3, (7,), generator=draw)

    def steps(self, images: Tensor, rates: Tensor) -> list[InnerStep]:
        return [InnerStep(images[t % 2], torch.arange(3), rates[t]) for t in range(4)]

    def outer(self, weights: Weights) -> tuple[Tensor, Weights]:
        return batch_gradient(self.network, weights, self.real, self.labels, chunk=3)

    def loss(self, images: Tensor, rates: Tensor) -> float:
        *_, last = walk(self.network, self.optimizer, self.weights, self.steps(images, rates))
        return float(self.network.loss(last, self.real, self.labels))

    def analytic(self, storage: str) -> tuple[Tensor, Tensor]:
        found = hypergradient(
            self.network, self.optimizer, self.weights, self.steps(self.images, self.rates), self.outer, storage
        )
        assert float(found.loss) == pytest.approx(self.loss(self.images, self.rates), rel=1e-12)
        return torch.stack([found.images[0] + found.images[2], found.images[1] + found.images[3]]), found.rates

    def numeric(self, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
        def central(values: Tensor, at: int, along_images: bool) -> float:
            ends = []
            for sign in (1, -1):
                moved = values.clone()
                moved.view(-1)[at] += sign * eps
                ends.append(self.loss(moved, self.rates) if along_images else self.loss(self.images, moved))
            return (ends[0] - ends[1]) / (2 * eps)

        images = torch.tensor([central(self.images, i, True) for i in range(self.images.numel())])
        rates = torch.tensor([central(self.rates, i, False) for i in range(4)])
        return images.double().view_as(self.images), rates.double()


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def check(case: Case, tolerance: float) -> None:
    images, rates = case.numeric()
    assert images.norm() > 1e-6
    results = {storage: case.analytic(storage) for storage in STORAGES}
    for found_images, found_rates in results.values():
        assert error(found_images, images) < tolerance
        for index in range(4):
            assert found_rates[index].item() == pytest.approx(rates[index].item(), rel=tolerance, abs=1e-8)
    for full, recomputed in zip(results["full"], results["recompute"], strict=True):
        assert torch.allclose(full, recomputed, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("norm", NORMS.names())
def test_every_norm_and_optimizer(norm: str, optimizer: Optimizer) -> None:
    module = ConvNet(3, 1, 4, depth=1, width=4, norm=norm, activation="swish")
    check(Case(module, 4, optimizer, rate=0.01 if isinstance(optimizer, Adam) else 0.1), 1e-5)


def test_max_pooling_and_relu() -> None:
    check(Case(ConvNet(3, 1, 4, depth=1, width=4, pooling="max"), 4, SGD(), 0.1), 1e-5)


def test_mlp() -> None:
    check(Case(MLP(3, 1, 4, width=8), 4, SGD(), 0.1), 1e-5)


def test_lenet_along_random_pixels_and_every_rate() -> None:
    # ReLU and max pooling make the outer loss jump where a kink is crossed, so the step is small.
    case, eps = Case(LeNet(3), 28, SGD(), 0.1, shake=0), 1e-7
    images, rates = case.analytic("full")
    for values, gradient in ((case.images, images), (case.rates, rates)):
        count = values.numel()
        for at in torch.randperm(count, generator=stream(1))[:40].tolist():
            ends = []
            for sign in (1, -1):
                moved = values.clone()
                moved.view(-1)[at] += sign * eps
                ends.append(case.loss(moved, case.rates) if count > 4 else case.loss(case.images, moved))
            numeric = (ends[0] - ends[1]) / (2 * eps)
            assert gradient.view(-1)[at].item() == pytest.approx(numeric, rel=1e-4, abs=1e-8)


def test_nothing_is_changed_in_place() -> None:
    case = Case(MLP(3, 1, 4, width=8), 4, Adam(), 0.01)
    before = {name: weight.clone() for name, weight in case.weights.items()}
    images, rates = case.images.clone(), case.rates.clone()
    case.analytic("full")
    assert all(torch.equal(before[name], case.weights[name]) for name in before)
    assert torch.equal(images, case.images)
    assert torch.equal(rates, case.rates)
    assert not any(weight.requires_grad for weight in case.weights.values())


def test_chunks_do_not_change_the_outer_gradient() -> None:
    case = Case(MLP(3, 1, 4, width=8), 4, SGD(), 0.1)
    loss, whole = batch_gradient(case.network, case.weights, case.real, case.labels, chunk=100)
    other_loss, parts = batch_gradient(case.network, case.weights, case.real, case.labels, chunk=2)
    assert float(loss) == pytest.approx(float(other_loss), rel=1e-12)
    assert all(torch.allclose(whole[name], parts[name], rtol=1e-10, atol=1e-14) for name in whole)


def test_unknown_storage() -> None:
    case = Case(MLP(3, 1, 4, width=8), 4, SGD(), 0.1)
    with pytest.raises(ValueError, match="unknown storage"):
        case.analytic("everything")


def test_a_weight_the_loss_does_not_use_is_an_error() -> None:
    class Idle(MLP):
        def __init__(self) -> None:
            super().__init__(3, 1, 4, width=8)
            self.idle = torch.nn.Parameter(torch.zeros(3))

    case = Case(Idle(), 4, SGD(), 0.1)
    with pytest.raises(RuntimeError, match="not have been used"):
        case.analytic("full")

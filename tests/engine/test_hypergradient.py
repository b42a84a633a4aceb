"""The hypergradient against finite differences in float64, with respect to every image and every rate."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import datadistill as dd
from datadistill.engine import (
    SGD,
    Adam,
    AdamW,
    Engine,
    InnerStep,
    Loss,
    Optimizer,
    hypergradient,
    make_network,
    walk,
    with_noise,
)
from datadistill.engine.functional import Noise, Weights, batch_gradient
from datadistill.models import NORMS, draw_weights
from datadistill.models.convnet import ConvNet
from datadistill.models.lenet import LeNet
from datadistill.models.mlp import MLP
from datadistill.utils.runtime import stream

OPTIMIZERS = [SGD(), SGD(momentum=0.9), Adam()]


class Case:
    """A network, a distilled set of two batches walked twice, and a real batch, all in float64."""

    def __init__(
        self,
        module: nn.Module,
        size: int,
        optimizer: Optimizer,
        rate: float,
        shake: float = 0.1,
        policy: str = "refused",
    ) -> None:
        self.network = make_network(module.double(), policy)
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
        steps = [InnerStep(images[t % 2], torch.arange(3), rates[t], t % 2) for t in range(4)]
        return with_noise(self.network, steps, stream(3))

    def outer(self, weights: Weights) -> tuple[Tensor, Weights]:
        return batch_gradient(self.network, weights, self.real, self.labels, chunk=3)

    def loss(self, images: Tensor, rates: Tensor) -> float:
        *_, last = walk(self.network, self.optimizer, self.weights, self.steps(images, rates))
        return float(self.network.loss(last, self.real, self.labels))

    def analytic(self, engine: Engine) -> tuple[Tensor, Tensor]:
        steps = self.steps(self.images, self.rates)
        found = hypergradient(self.network, self.optimizer, self.weights, steps, self.outer, engine)
        assert float(found.loss) == pytest.approx(self.loss(self.images, self.rates), rel=1e-12)
        return torch.stack([found.images[0], found.images[1]]), found.rates

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


EXACT = [
    Engine("full", "reverse", "eager"),
    Engine("recompute", "reverse", "eager"),
    Engine("recompute", "forward", "eager"),
    Engine("checkpoint", "reverse", "eager", every=3),
    Engine("checkpoint", "forward", "eager", every=3),
    Engine("offload", "reverse", "eager"),
]
"""Every way that promises the exact derivative."""


def name(engine: Engine) -> str:
    return f"{engine.storage}-{engine.hvp}"


def check(case: Case, tolerance: float) -> None:
    images, rates = case.numeric()
    assert images.norm() > 1e-6
    results = [case.analytic(engine) for engine in EXACT]
    for found_images, found_rates in results:
        assert error(found_images, images) < tolerance
        for index in range(4):
            assert found_rates[index].item() == pytest.approx(rates[index].item(), rel=tolerance, abs=1e-8)
        assert torch.allclose(found_images, results[0][0], rtol=1e-9, atol=1e-13)
        assert torch.allclose(found_rates, results[0][1], rtol=1e-9, atol=1e-13)


@pytest.mark.repeats
@pytest.mark.parametrize(
    ("norm", "optimizer"),
    [  # each of both in short tests, and together in long ones
        pytest.param(
            norm, optimizer, marks=() if norm == "instance" or optimizer == OPTIMIZERS[0] else pytest.mark.slow
        )
        for norm, optimizer in itertools.product(NORMS.names(), OPTIMIZERS)
    ],
    ids=str,
)
def test_every_norm_and_optimizer(norm: str, optimizer: Optimizer) -> None:
    module = ConvNet(3, 1, 4, depth=1, width=4, norm=norm, activation="swish")
    check(Case(module, 4, optimizer, rate=0.01 if isinstance(optimizer, Adam) else 0.1), 1e-5)


@pytest.mark.repeats
def test_max_pooling_and_relu() -> None:
    check(Case(ConvNet(3, 1, 4, depth=1, width=4, pooling="max"), 4, SGD(), 0.1), 1e-5)


def test_mlp() -> None:
    check(Case(MLP(3, 1, 4, width=8), 4, SGD(), 0.1), 1e-5)


def test_lenet_along_random_pixels_and_every_rate() -> None:
    # ReLU and max pooling make the outer loss jump where a kink is crossed, so the step is small.
    case, eps = Case(LeNet(3), 28, SGD(), 0.1, shake=0), 1e-7
    images, rates = case.analytic(EXACT[0])
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
    case.analytic(EXACT[0])
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


def test_a_real_batch_in_bfloat16_is_near() -> None:
    module = ConvNet(10, 1, 28, width=16)
    network = make_network(module)
    weights = draw_weights(module, "xavier", stream(0))
    images, labels = torch.randn(32, 1, 28, 28, generator=stream(1)), torch.arange(32) % 10
    exact = batch_gradient(network, weights, images, labels, 16)[1]
    near = batch_gradient(network, weights, images, labels, 16, precision="bfloat16")[1]
    assert all(gradient.dtype == torch.float32 for gradient in near.values())
    found, expected = (torch.cat([g.flatten() for g in part.values()]) for part in (near, exact))
    assert 1e-5 < error(found, expected) < 0.1


def test_nothing_may_be_left_to_choose() -> None:
    case = Case(MLP(3, 1, 4, width=8), 4, SGD(), 0.1)
    with pytest.raises(ValueError, match="still to be chosen"):
        case.analytic(Engine())


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("engine", [*EXACT, Engine("recompute", "difference", "eager")], ids=name)
def test_pieces_of_the_distilled_batch(engine: Engine, optimizer: Optimizer) -> None:
    case = Case(ConvNet(3, 1, 4, depth=1, width=4, activation="swish"), 4, optimizer, 0.01)
    whole, pieces = case.analytic(engine), case.analytic(replace(engine, inner_chunk=2))
    tolerance = 1e-10 if engine.is_exact else 1e-5
    assert error(pieces[0], whole[0]) < tolerance
    assert error(pieces[1], whole[1]) < tolerance


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("storage", ["full", "recompute"])
def test_pieces_shared_out_among_cores(storage: Any, optimizer: Optimizer) -> None:
    case = Case(ConvNet(3, 1, 4, depth=1, width=4, activation="swish"), 4, optimizer, 0.01)
    engine, found = Engine(storage, "reverse", "eager", inner_chunk=1), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(case.analytic(engine))
    assert error(found[1][0], found[0][0]) < 1e-12
    assert error(found[1][1], found[0][1]) < 1e-12


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_difference_is_near(optimizer: Optimizer) -> None:
    case = Case(ConvNet(3, 1, 4, depth=1, width=4, activation="swish"), 4, optimizer, 0.01)
    exact, near = case.analytic(EXACT[0]), case.analytic(Engine("recompute", "difference", "eager"))
    assert 0 < error(near[0], exact[0]) < 1e-6
    assert error(near[1], exact[1]) < 1e-6


@pytest.mark.parametrize("storage", ["full", "recompute", "checkpoint", "offload"])
@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_window_differentiates_the_last_steps_alone(first: int, storage: Any) -> None:
    case = Case(ConvNet(3, 1, 4, depth=1, width=4, activation="swish"), 4, SGD(), 0.1)
    steps = case.steps(case.images, case.rates)
    whole = hypergradient(case.network, SGD(), case.weights, steps, case.outer, EXACT[0])
    engine = Engine(storage, "reverse", "eager", every=2)
    found = hypergradient(case.network, SGD(), case.weights, steps, case.outer, engine, first=first)
    assert found.rates[:first].tolist() == [0] * first
    assert torch.allclose(found.rates[first:], whole.rates[first:], rtol=1e-10)
    *_, middle = itertools.islice(walk(case.network, SGD(), case.weights, steps), first + 1)
    rest = hypergradient(case.network, SGD(), middle, steps[first:], case.outer, EXACT[0])
    for batch, images in rest.images.items():
        assert error(found.images[batch], images) < 1e-10
    assert float(found.loss) == pytest.approx(float(whole.loss), rel=1e-12)


@pytest.mark.repeats
def test_dropout_draws_the_same_when_a_step_is_computed_again() -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.SiLU(), nn.Dropout(0.4), nn.Linear(12, 3))
    case = Case(body, 4, SGD(momentum=0.9), 0.1)
    check(case, 1e-5)
    noisy = case.network.logits(case.weights, case.real, noise=Noise(1))
    assert torch.equal(noisy, case.network.logits(case.weights, case.real, noise=Noise(1)))
    assert not torch.equal(noisy, case.network.logits(case.weights, case.real, noise=Noise(2)))
    assert torch.equal(*(case.network.logits(case.weights, case.real) for _ in range(2)))


def test_dropout_of_whole_planes() -> None:
    network = make_network(nn.Sequential(nn.Dropout2d(0.5), nn.Flatten()))
    kept = network.logits({}, torch.ones(6, 8, 2, 2), noise=Noise(0)).view(6, 8, 4)
    assert set(kept.unique().tolist()) == {0, 2}
    assert torch.equal(kept.amax(2), kept.amin(2))


class Normed(nn.Sequential):
    """A network whose batch normalisation keeps running statistics, as everybody's does."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.repeats
@pytest.mark.parametrize("policy", ["batch", "frozen"])
def test_batch_norm_policies(policy: str) -> None:
    module = Normed()
    module[1].running_mean.uniform_(-0.3, 0.3)
    module[1].running_var.uniform_(0.5, 2)
    before = {name: buffer.double() for name, buffer in module.named_buffers()}
    case = Case(module, 4, SGD(), 0.1, policy=policy)
    check(case, 1e-5)
    assert case.network.couples_images == (policy == "batch")
    assert all(torch.equal(before[name], buffer.double()) for name, buffer in module.named_buffers())
    alone = torch.cat([case.network.logits(case.weights, image[None]) for image in case.real])
    together = case.network.logits(case.weights, case.real)
    assert torch.allclose(alone, together) == (policy == "frozen")


def test_running_statistics_are_never_used_silently() -> None:
    with pytest.raises(dd.RequestError, match="layer 1 keeps running statistics"):
        make_network(Normed())


@pytest.mark.repeats
def test_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
            self.second.weight = self.first.weight
            self.last = nn.Linear(16, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.last(torch.tanh(self.second(torch.tanh(self.first(images.flatten(1))))))

    check(Case(Tied(), 4, SGD(), 0.1), 1e-5)


def test_a_weight_the_loss_does_not_use_is_an_error() -> None:
    class Idle(MLP):
        def __init__(self) -> None:
            super().__init__(3, 1, 4, width=8)
            self.idle = torch.nn.Parameter(torch.zeros(3))

    case = Case(Idle(), 4, SGD(), 0.1)
    with pytest.raises(RuntimeError, match="not have been used"):
        case.analytic(EXACT[0])


@pytest.mark.repeats
def test_decoupled_weight_decay() -> None:
    check(Case(MLP(3, 1, 4, width=8), 4, AdamW(weight_decay=0.5), 0.01), 1e-5)


@pytest.mark.repeats
@pytest.mark.parametrize("loss", [Loss("mse"), Loss("kl", 3.0)], ids=str)
def test_other_losses(loss: Loss) -> None:
    case = Case(MLP(3, 1, 4, width=8), 4, SGD(momentum=0.9), 0.1)
    case.network = case.network.trained_by(loss)
    check(case, 1e-5)


@pytest.mark.repeats
@pytest.mark.parametrize(
    "engine",
    [*EXACT, *(Engine(storage, "reverse", "eager", inner_chunk=2) for storage in ("recompute", "full"))],
    ids=lambda e: e.storage,
)
@pytest.mark.parametrize(
    ("optimizer", "criterion"),
    [*((optimizer, Loss()) for optimizer in OPTIMIZERS), (SGD(), Loss("mse")), (SGD(), Loss("kl", 2.0))],
    ids=["sgd", "momentum", "adam", "mse", "kl"],
)
def test_soft_labels(engine: Engine, optimizer: Optimizer, criterion: Loss) -> None:
    case = Case(MLP(3, 1, 4, width=8), 4, optimizer, 0.05)
    case.network = case.network.trained_by(criterion)
    soft = torch.rand(2, 3, 3, generator=stream(4), dtype=torch.float64)

    def steps(labels: Tensor) -> list[InnerStep]:
        return [step._replace(labels=labels[step.batch]) for step in case.steps(case.images, case.rates)]

    def loss(labels: Tensor) -> float:
        *_, last = walk(case.network, optimizer, case.weights, steps(labels))
        return float(case.network.loss(last, case.real, case.labels))

    found = hypergradient(case.network, optimizer, case.weights, steps(soft), case.outer, engine)
    for at in range(soft.numel()):
        ends = []
        for sign in (1, -1):
            moved = soft.clone()
            moved.view(-1)[at] += sign * 1e-7
            ends.append(loss(moved))
        analytic = float(torch.stack([found.labels[0], found.labels[1]]).view(-1)[at])
        assert analytic == pytest.approx((ends[0] - ends[1]) / 2e-7, rel=1e-5, abs=1e-8)

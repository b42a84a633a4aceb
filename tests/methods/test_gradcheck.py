"""What cannot be differentiated twice is named, and a method's gradient is compared with finite differences."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import datadistill as dd
from datadistill.distillation.problem import make_problem
from datadistill.engine import Engine, make_network
from datadistill.engine.differentiability import Trouble, find_undifferentiable, require_differentiable
from datadistill.methods import DD, Method, Problem, Step, gradcheck
from datadistill.methods.gradcheck import check_hypergradient
from datadistill.models import ModelFactory, create_model
from datadistill.models.lenet import LeNet


class _Square(torch.autograd.Function):
    """x^2, with a derivative that autograd takes for a constant."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values * values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


class _Detached(_Square):
    """The same by way of numbers that autograd does not follow."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0].detach() * gradient.detach()


class _Twice(_Square):
    """A custom function that is as it should be."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


class Custom(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: Tensor) -> Tensor:
        return values + self.function.apply(values)


class Distances(nn.Module):
    """Distances to learned points; PyTorch has no second derivative for them."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(10, 8))
        self.before = nn.Identity()

    def forward(self, values: Tensor) -> Tensor:
        return torch.cdist(self.before(values), self.points)


class Idle(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self.idle = nn.Parameter(torch.zeros(3))


class Scaled(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values * torch.rand(())


class Counted(nn.Sequential):
    """Keeps a buffer and draws random numbers."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10), Scaled())
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images)


def body(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), *layers)


def troubles(module: nn.Module, hvp: str = "reverse") -> list[Trouble]:
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return find_undifferentiable(make_network(module), images, torch.tensor([0, 1]), 10, hvp)


@pytest.mark.parametrize("hvp", ["auto", "reverse", "forward", "difference"])
@pytest.mark.parametrize("model", ["ConvNetD2W8", "ConvNetD1W8BN", "mlp"])
def test_our_networks_can_be_differentiated(model: str, hvp: str, digits: dd.RealData) -> None:
    network = make_network(create_model(model, digits), "batch")
    require_differentiable(network, digits.train.images[:1], 10, hvp)


@pytest.mark.parametrize("operations", ["all", "off"])
def test_lenet_can_be_differentiated(operations: str) -> None:
    network = make_network(LeNet(10), operations=operations)
    require_differentiable(network, torch.zeros(1, 1, 28, 28), 10)


@pytest.mark.parametrize("function", [_Square, _Detached])
def test_a_layer_that_would_be_wrong_without_an_error_is_named(function: type[torch.autograd.Function]) -> None:
    (found,) = troubles(body(nn.Sequential(nn.ReLU(inplace=True), Custom(function)), nn.Linear(8, 10)))
    assert found[:2] == ("2.1", "Custom")
    assert found.reason.endswith(f"the backward of custom function {function.__name__}")


def test_a_custom_function_that_can_be_differentiated_is_none() -> None:
    assert troubles(body(Custom(_Twice), nn.Linear(8, 10))) == []


def test_a_layer_without_second_derivative_is_named_though_it_holds_others() -> None:
    module = body(Distances())
    (found,) = troubles(module)
    assert found[:2] == ("2", "Distances")
    assert "_cdist_backward" in found.reason
    assert troubles(module, "difference") == []
    with pytest.raises(dd.RequestError, match=r"layer 2 \(Distances: .*_cdist_backward.*\): replace what is named"):
        require_differentiable(make_network(module), torch.zeros(1, 1, 8, 8), 10)


def test_forward_derivatives_ask_for_more() -> None:
    module = body(Custom(_Twice), nn.Linear(8, 10))
    (found,) = troubles(module, "forward")
    assert found[:2] == ("2", "Custom")
    assert "setup_context" in found.reason


def test_the_network_itself_is_named_where_no_layer_is_to_blame() -> None:
    class Whole(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            return _Square.apply(super().forward(images))  # type: ignore[no-any-return]

    (found,) = troubles(Whole(nn.Flatten(), nn.Linear(64, 10)))
    assert found.name == ""
    assert str(found).startswith("the network itself (Whole: ")


def test_an_unused_weight_is_named() -> None:
    assert [(found.name, found.kind) for found in troubles(Idle())] == [("idle", "weight")]
    with pytest.raises(
        dd.RequestError, match=r"weight idle \(the loss does not depend on it\): remove what is not used"
    ):
        require_differentiable(make_network(Idle()), torch.zeros(1, 1, 8, 8), 10)


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), r"shape \[2, 7\], but 10 classes need \[2, 10\]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(60, 10)), r"does not take images of shape \[1, 8, 8\]"),
        (nn.Flatten(), "no weights"),
    ],
)
def test_what_is_no_classifier_is_refused(module: nn.Module, sentence: str) -> None:
    with pytest.raises(dd.RequestError, match=sentence):
        require_differentiable(make_network(module), torch.zeros(1, 1, 8, 8), 10)


def test_nothing_is_left_behind() -> None:
    module, state = Counted(), torch.get_rng_state()
    assert troubles(module) == []
    assert float(module.calls) == 0
    assert torch.equal(state, torch.get_rng_state())
    assert not module._forward_pre_hooks
    assert all(parameter.grad is None for parameter in module.parameters())


def problem(real: dd.RealData, model: str | ModelFactory, engine: Engine, weights: str = "fixed-init") -> Problem:
    where = {"device": torch.device("cpu"), "engine": engine}
    return make_problem(real, model=model, weights=weights, scheme="xavier", ipc=2, seed=0, **where)


SMALL = DD(steps=2, epochs=2, images="mean", batch=16, networks=2)
EXACT = [
    Engine("full", "reverse", "eager"),
    Engine("recompute", "forward", "eager"),
    Engine("checkpoint", "reverse", "eager", every=2, inner_chunk=4),
    Engine("offload", "reverse", "eager"),
    Engine(),
]


@pytest.mark.parametrize("engine", EXACT, ids=lambda engine: f"{engine.storage}-{engine.hvp}")
def test_right_gradients_pass(engine: Engine, digits: dd.RealData) -> None:
    check = check_hypergradient(SMALL, problem(digits, "ConvNetD1W4", engine), directions=2)
    names = ["images of batch 1", "images of batch 2", *(f"learning rate {t}" for t in (1, 2, 3, 4))]
    assert [row.name for row in check.rows] == names
    assert [len(row.numeric) for row in check.rows] == [2, 2, 1, 1, 1, 1]
    assert check.passed
    assert check.worst.error < gradcheck.TOLERANCE / 10
    assert check.is_exact


def test_lenet_and_random_weights_pass(mnist: dd.RealData) -> None:
    method = DD(steps=1, epochs=2, images="real", batch=16, networks=1)
    check = check_hypergradient(method, problem(mnist, "lenet", Engine(), "random-init"), directions=1)
    assert check.passed


def test_kinks_are_left_out_and_it_is_said(digits: dd.RealData) -> None:
    check = check_hypergradient(replace(SMALL, surrogate_width=0.3), problem(digits, "mlp", Engine()), directions=1)
    assert check.passed
    assert "surrogate_width 0: 0.3 departs" in check.remarks[0]


def test_a_window_is_left_out_and_it_is_said(digits: dd.RealData) -> None:
    check = check_hypergradient(replace(SMALL, window=1), problem(digits, "ConvNetD1W4", Engine()), directions=1)
    assert check.passed
    assert "window 0: 1 departs" in check.remarks[0]


@dataclass(frozen=True)
class Wrong(DD):
    """A gradient that is too long by a hundredth."""

    factor: float = 1.01

    def step(self, *arguments: Any) -> Step:
        step = super().step(*arguments)
        return step._replace(gradients={**step.gradients, "images": step.gradients["images"] * self.factor})


@pytest.mark.parametrize("factor", [1.01, 1.001, -1.0, math.nan])
def test_wrong_gradients_fail(factor: float, digits: dd.RealData) -> None:
    method: Method = Wrong(steps=1, epochs=2, images="mean", batch=16, factor=factor)
    check = check_hypergradient(method, problem(digits, "mlp", Engine()), directions=2)
    assert not check.passed
    assert [row.agrees for row in check.rows] == [False, True, True]
    assert math.isnan(factor) or check.worst.error == pytest.approx(abs(1 - 1 / factor), rel=1e-2) or factor < 0


def test_a_wrong_second_derivative_is_refused_before_a_run(digits: dd.RealData) -> None:
    def model() -> nn.Module:
        return body(Custom(_Square), nn.Linear(8, 10))

    with pytest.raises(dd.RequestError, match=r"layer 2 \(Custom: .*_Square\)"):
        check_hypergradient(DD(steps=1, epochs=2, batch=16), problem(digits, model, Engine()), directions=2)

from itertools import product

import pytest
import torch
from torch import nn

import datadistill as dd
from datadistill.models import MODELS, NORMS, SCHEMES, create_model, draw_weights, has_own_weights, model_name
from datadistill.models.convnet import ConvNet
from datadistill.models.lenet import LeNet
from datadistill.models.mlp import MLP
from datadistill.models.names import spelled
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream


@pytest.mark.parametrize("size", [28, 32])
def test_lenet_has_the_weights_of_the_paper(size: int) -> None:
    network = LeNet(image_size=size)
    assert sum(p.numel() for p in network.parameters()) == 61_706
    assert network(torch.zeros(2, 1, size, size)).shape == (2, 10)


def test_lenet_refuses_other_sizes() -> None:
    with pytest.raises(RequestError, match="8x8"):
        LeNet(image_size=8)


def test_convnet_has_the_weights_of_the_field() -> None:
    # 3 blocks of 128 channels on 32x32 colour: the figure DC's networks have.
    assert sum(p.numel() for p in ConvNet(in_channels=3, image_size=32).parameters()) == 320_010


@pytest.mark.parametrize(
    ("norm", "pooling", "activation"),
    [
        *product(NORMS.names(), ["avg", "max", "none"], ["relu"]),
        *product(["instance"], ["avg"], ["leakyrelu", "sigmoid", "swish"]),
    ],
)
def test_convnet_variants_run(norm: str, pooling: str, activation: str) -> None:
    network = ConvNet(4, 3, 8, depth=2, width=8, norm=norm, pooling=pooling, activation=activation)
    assert network(torch.randn(5, 3, 8, 8, generator=stream(0))).shape == (5, 4)


@pytest.mark.parametrize("size", [8, 28, 32, 64])
def test_convnet_fits_its_images(size: int) -> None:
    assert ConvNet(10, 1, size, width=4)(torch.zeros(2, 1, size, size)).shape == (2, 10)


def test_convnet_too_deep_for_its_images() -> None:
    with pytest.raises(RequestError, match="halves"):
        ConvNet(image_size=8, depth=4)


@pytest.mark.parametrize(
    ("name", "family", "options"),
    [
        ("convnet", "convnet", {}),
        ("ConvNetD3W128", "convnet", {"depth": 3, "width": 128}),
        ("ConvNetBN", "convnet", {"norm": "batch"}),
        ("convnetw64d4in", "convnet", {"width": 64, "depth": 4, "norm": "instance"}),
        ("ConvNet_leakyrelu_MP", "convnet", {"activation": "leakyrelu", "pooling": "max"}),
        ("VGG11", "vgg11", {}),
        ("vgg11bn", "vgg11", {"norm": "batch"}),
        ("VGG11_NN", "vgg11", {"norm": "none"}),
        ("ResNet18GN", "resnet18", {"norm": "group"}),
        ("AlexNetLN", "alexnet", {"norm": "layer"}),
        ("LeNet", "lenet", {}),
    ],
)
def test_names_spell_options(name: str, family: str, options: dict[str, object]) -> None:
    assert spelled(name, family, MODELS.get(family).options) == options
    assert all(spelled(name, other, MODELS.get(other).options) is None for other in MODELS.names() if other != family)


@pytest.mark.parametrize(
    "name",
    ["ConvNetX", "ConvNetD", "ConvNetBNGN", "VGG11D3", "VGG11AP", "ResNet18_", "AlexNetBNBN", "LeNetBN", "MLPW64", ""],
)
def test_names_that_spell_nothing(name: str, mnist: dd.RealData) -> None:
    with pytest.raises(RequestError, match=f"unknown model '{name}': there are lenet, "):
        create_model(name, mnist)


@pytest.mark.parametrize("name", ["LENET", "convnet", "MLP", "ConvNetD2W8", "alexnetbn", "VGG11", "RESNET18nn"])
def test_models_by_name(name: str, mnist: dd.RealData) -> None:
    assert create_model(name, mnist)(mnist.test.images[:2]).shape == (2, 10)
    assert model_name(name) == name.lower()
    assert not has_own_weights(name)


@pytest.mark.parametrize(("wrong", "right"), [("VGG11B", "vgg11"), ("ResNet20BN", "resnet18"), ("alexnett", "alexnet")])
def test_misspelt_options_suggest_the_family(wrong: str, right: str, mnist: dd.RealData) -> None:
    for asked in (lambda: create_model(wrong, mnist), lambda: has_own_weights(wrong)):
        with pytest.raises(RequestError, match=f"did you mean {right}"):
            asked()


def test_unknown_model_suggests_the_nearest(mnist: dd.RealData) -> None:
    with pytest.raises(RequestError, match="did you mean lenet"):
        create_model("lenett", mnist)


def test_own_factory_gets_what_it_accepts(digits: dd.RealData) -> None:
    def factory(num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    assert create_model(factory, digits)(digits.test.images[:2]).shape == (2, 10)
    with pytest.raises(RequestError, match="not a torch"):
        create_model(lambda: "network", digits)


@pytest.mark.parametrize("scheme", SCHEMES.names())
def test_schemes_are_repeatable_and_leave_the_global_generator_alone(scheme: str) -> None:
    module = ConvNet(10, 1, 8, depth=2, width=8)
    before = torch.random.get_rng_state()
    first = draw_weights(module, scheme, stream(1))
    assert torch.equal(torch.random.get_rng_state(), before)
    second = draw_weights(ConvNet(10, 1, 8, depth=2, width=8), scheme, stream(1))
    other = draw_weights(module, scheme, stream(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    if scheme != "default":
        assert first["classifier.bias"].abs().max() == 0
    assert (first["features.1.weight"] == 1).all()


@pytest.mark.parametrize(
    ("scheme", "variance"),
    [("xavier", 2 / 1500), ("xavier-uniform", 2 / 1500), ("he", 2 / 1000), ("he-out", 2 / 500), ("normal", 0.0004)],
)
def test_schemes_have_their_variance(scheme: str, variance: float) -> None:
    weight = draw_weights(nn.Linear(1000, 500), scheme, stream(0))["weight"]
    assert weight.var().item() == pytest.approx(variance, rel=0.02)
    assert abs(weight.mean().item()) < 1e-3


def test_orthogonal_is_orthogonal() -> None:
    weight = draw_weights(nn.Linear(40, 20), "orthogonal", stream(0))["weight"]
    assert torch.allclose(weight @ weight.T, torch.eye(20), atol=1e-5)


def test_every_model_has_a_line() -> None:
    assert all(info.line and info.paper for info in MODELS)


def test_mlp_depth() -> None:
    assert sum(isinstance(layer, nn.Linear) for layer in MLP(depth=4).layers) == 5

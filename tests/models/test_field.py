"""The networks of dataset condensation: their weights counted by hand, their shapes, their second derivatives."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from datadistill.engine import make_network
from datadistill.engine.differentiability import require_differentiable
from datadistill.models import MODELS, NORMS, draw_weights
from datadistill.models.alexcifarnet import AlexCifarNet
from datadistill.models.alexnet import AlexNet
from datadistill.models.convnet import ConvNet
from datadistill.models.lenet import LeNet
from datadistill.models.mlp import MLP
from datadistill.models.resnet import ResNet18
from datadistill.models.vgg import VGG11
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream

FIELD = {"convnet": 8, "alexnet": 8, "vgg11": 28, "resnet18": 9}
"""Each family with a norm, and the smallest images it takes that normalise over more than one pixel."""


def weights_of(*convolutions: tuple[int, int, int], bias: bool = True, normed: bool = True) -> int:
    """Weights of convolutions (channels before, channels after, width of the kernel), each with a norm if wanted."""
    return sum(before * after * width**2 + after * bias + 2 * after * normed for before, after, width in convolutions)


ALEX = ((3, 128, 5), (128, 192, 5), (192, 256, 3), (256, 192, 3), (192, 192, 3))
VGG = (*((3, 64, 3), (64, 128, 3), (128, 256, 3), (256, 256, 3)), (256, 512, 3), *[(512, 512, 3)] * 3)
RES = (
    *((3, 64, 3), *[(64, 64, 3)] * 4),
    *((64, 128, 3), *[(128, 128, 3)] * 3, (64, 128, 1)),
    *((128, 256, 3), *[(256, 256, 3)] * 3, (128, 256, 1)),
    *((256, 512, 3), *[(512, 512, 3)] * 3, (256, 512, 1)),
)


@pytest.mark.parametrize(
    ("network", "expected", "counted"),
    [
        (ConvNet(), 320_010, weights_of((3, 128, 3), (128, 128, 3), (128, 128, 3)) + (128 * 16 + 1) * 10),
        (AlexNet(), 1_872_202, weights_of(*ALEX, normed=False) + (192 * 16 + 1) * 10),
        (AlexNet(norm="batch"), 1_874_122, weights_of(*ALEX) + (192 * 16 + 1) * 10),
        (VGG11(), 9_231_114, weights_of(*VGG) + 513 * 10),
        (VGG11(norm="none"), 9_225_610, weights_of(*VGG, normed=False) + 513 * 10),
        (ResNet18(), 11_173_962, weights_of(*RES, bias=False) + 513 * 10),
        (ResNet18(norm="none"), 11_164_362, weights_of(*RES, bias=False, normed=False) + 513 * 10),
        (MLP(10, 3, 32), 411_146, 3073 * 128 + 129 * 128 + 129 * 10),
        (MLP(10, 1, 28), 118_282, 785 * 128 + 129 * 128 + 129 * 10),
        (LeNet(10, 3, 32), 62_006, (75 + 1) * 6 + (150 + 1) * 16 + 401 * 120 + 121 * 84 + 85 * 10),
        (
            AlexCifarNet(),
            1_756_426,
            weights_of((3, 64, 5), (64, 64, 5), normed=False) + 4097 * 384 + 385 * 192 + 193 * 10,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_weights_counted_by_hand(network: nn.Module, expected: int, counted: int) -> None:
    assert sum(weight.numel() for weight in network.parameters()) == expected == counted


@pytest.mark.parametrize(
    ("family", "channels", "size"),
    [
        *((family, *image) for family in FIELD for image in ((1, 28), (3, 32), (3, 64))),
        *((family, *image) for family in ("lenet", "mlp") for image in ((1, 28), (3, 32))),
        *(("alexnet", 1, size) for size in (8, 16, 31, 50)),
        *(("resnet18", 1, size) for size in (9, 16, 31, 50)),
        *(("vgg11", 1, size) for size in (33, 50, 95)),
    ],
)
def test_forward_shapes(family: str, channels: int, size: int) -> None:
    network = MODELS.get(family).build(num_classes=7, in_channels=channels, image_size=size)
    assert network(torch.randn(1, channels, size, size, generator=stream(0))).shape == (1, 7)


@pytest.mark.parametrize(
    ("family", "size", "allowed"),
    [
        ("alexnet", 7, "8x8 pixels or more"),
        ("resnet18", 8, "9x9 pixels or more"),
        *(("vgg11", size, "28x28 pixels, or of 32x32 or more") for size in (8, 16, 29, 31)),
    ],
)
def test_images_that_are_too_small(family: str, size: int, allowed: str) -> None:
    with pytest.raises(RequestError, match=rf"takes images of {allowed}, these have {size}x{size}: use"):
        MODELS.get(family).build(image_size=size)


def test_images_of_28_pixels_are_padded_to_32() -> None:
    images = torch.randn(2, 3, 28, 28, generator=stream(0))
    for family in (AlexNet, VGG11):
        small, large = family(image_size=28), family(image_size=32)
        large.load_state_dict(small.state_dict())
        padded = nn.functional.pad(images, (2, 2, 2, 2))
        assert torch.allclose(small(images), large(padded), atol=1e-5)


def is_quick(family: str, norm: str) -> bool:
    """Large networks have two norms in short tests: one over the batch and one over each image."""
    return family in ("convnet", "alexnet") or norm in ("batch", "instance")


@pytest.mark.parametrize(
    ("family", "norm"),
    [
        pytest.param(family, norm, marks=() if is_quick(family, norm) else pytest.mark.slow)
        for family, norm in itertools.product(FIELD, NORMS.names())
    ],
)
def test_second_derivatives(family: str, norm: str) -> None:
    """Along one direction of images and one of weights, against a central difference of the gradient."""
    size = FIELD[family]
    module = MODELS.get(family).build(num_classes=3, in_channels=1, image_size=size, norm=norm).double()
    network, draw = make_network(module), stream(1)
    weights = {name: weight.requires_grad_() for name, weight in draw_weights(module, "he", draw).items()}
    along = {name: torch.randn(w.shape, generator=draw, dtype=w.dtype) for name, w in weights.items()}
    images, shift = torch.randn(2, 2, 1, size, size, generator=draw, dtype=torch.float64)

    def slope(images: Tensor, create_graph: bool = False) -> Tensor:
        _, gradient = network.gradient(weights, images, torch.tensor([0, 2]), create_graph)
        return torch.stack([(gradient[name] * along[name]).sum() for name in weights]).sum()

    leaf = images.clone().requires_grad_()
    (found,) = torch.autograd.grad(slope(leaf, create_graph=True), leaf)
    assert found.isfinite().all()
    eps = 1e-7
    expected = (slope(images + eps * shift) - slope(images - eps * shift)) / (2 * eps)
    assert abs(float(expected)) > 1e-6
    assert float((found * shift).sum()) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("hvp", ["reverse", "forward", "difference"])
@pytest.mark.parametrize("family", FIELD)
def test_the_engine_takes_them(family: str, hvp: str) -> None:
    size = FIELD[family]
    module = MODELS.get(family).build(num_classes=3, in_channels=1, image_size=size)
    require_differentiable(make_network(module), torch.randn(1, 1, size, size, generator=stream(0)), 3, hvp)


@pytest.mark.parametrize("policy", ["refused", "batch", "frozen"])
@pytest.mark.parametrize("family", FIELD)
def test_batch_norm_keeps_no_state_whatever_the_policy(family: str, policy: str) -> None:
    size = FIELD[family]
    module = MODELS.get(family).build(num_classes=3, in_channels=1, image_size=size, norm="batch")
    network = make_network(module, policy)
    assert network.couples_images
    assert not list(module.buffers())
    assert not make_network(MODELS.get(family).build(image_size=size), policy).couples_images

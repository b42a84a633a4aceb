"""Networks by name."""

import functools
import inspect
import sys
from dataclasses import dataclass
from typing import Any

from torch import nn

from datadistill.data.real import RealData
from datadistill.models.alexcifarnet import AlexCifarNet
from datadistill.models.alexnet import AlexNet
from datadistill.models.convnet import ConvNet
from datadistill.models.efficientnet import EfficientNetLite0
from datadistill.models.external import (
    ModelFactory,
    canonical,
    is_code,
    load_factory,
    same_code,
    seeded,
)
from datadistill.models.init import SCHEMES, draw_weights
from datadistill.models.lenet import LeNet
from datadistill.models.mlp import MLP
from datadistill.models.names import spelled
from datadistill.models.norms import NORMS
from datadistill.models.resnet import ResNet18
from datadistill.models.validate import check_fits, copied, plain_module
from datadistill.models.vgg import VGG11
from datadistill.utils.errors import RequestError, brief, unknown_name
from datadistill.utils.registry import Registry

__all__ = [
    "MODELS",
    "NORMS",
    "SCHEMES",
    "ModelFactory",
    "ModelInfo",
    "create_model",
    "draw_weights",
    "has_own_weights",
    "is_built_in",
    "is_code",
    "model_name",
    "same_model",
]


@dataclass(frozen=True)
class ModelInfo:
    """A network family.

    Attributes:
        name: what people type.
        line: one line of explanation.
        build: called with `num_classes`, `in_channels` and `image_size`.
        paper: where it comes from.
        pretrained: whether it comes with trained weights.
        options: what names of the family may spell after its own (see `spelled`), and `build` is called with.
    """

    name: str
    line: str
    build: ModelFactory
    paper: str
    pretrained: bool = False
    options: tuple[str, ...] = ()


MODELS = Registry(
    "model",
    (
        ModelInfo("lenet", "two 5x5 convolutions, three linear layers; 28x28 or 32x32", LeNet, "LeCun et al. 1998"),
        ModelInfo(
            "convnet",
            "3 blocks of 128 channels; ConvNetD4, ConvNetW64, ConvNetBN, ... for others",
            ConvNet,
            "Gidaris and Komodakis 2018",
            options=("depth", "width", "norm", "activation", "pooling"),
        ),
        ModelInfo(
            "alexnet",
            "five convolutions, no normalisation; AlexNetBN, AlexNetIN, ... for some; 8x8 or more",
            AlexNet,
            "Krizhevsky et al. 2012",
            options=("norm",),
        ),
        ModelInfo(
            "vgg11",
            "eight 3x3 convolutions, instance normalisation; VGG11BN, VGG11NN, ... for others; 28x28, 32x32 or more",
            VGG11,
            "Simonyan and Zisserman 2015",
            options=("norm",),
        ),
        ModelInfo(
            "resnet18",
            "eight residual blocks, instance normalisation; ResNet18BN, ResNet18GN, ... for others; 9x9 or more",
            ResNet18,
            "He et al. 2016",
            options=("norm",),
        ),
        ModelInfo(
            "alexcifarnet",
            "two 5x5 convolutions with local response norm, three linear layers; 32x32",
            AlexCifarNet,
            "Wang et al. 2018",
        ),
        ModelInfo("mlp", "two hidden layers of 128 units", MLP, "Zhao et al. 2021"),
        ModelInfo(
            "efficientnet-lite0",
            "trained on ImageNet, with a last layer that knows no classes; two packages (extra imagenet)",
            EfficientNetLite0,
            "Tan and Le 2019",
            pretrained=True,
        ),
    ),
)


def create_model(model: str | ModelFactory, real: RealData, seed: int = 0) -> nn.Module:
    """A network for a dataset, on the CPU, with whatever weights its constructor drew.

    Args:
        model: a name from `MODELS`, alone or with options as in `ConvNetD3W128BN` and `VGG11GN`, a network of timm or
            torchvision such as `timm:resnet18`, or a function that returns a `torch.nn.Module` and is called with
            those of `num_classes`, `in_channels` and `image_size` it accepts, itself or by name as
            `package.module:function` or `net.py:function`; a module itself is copied.
        real: what it is for.
        seed: of the global random numbers that such a function draws from, so that every process gets one network.

    Raises:
        RequestError: the name is unknown, its code cannot be loaded, or the network does not take such images.
    """
    facts: dict[str, int] = {
        "num_classes": real.num_classes,
        "in_channels": real.in_channels,
        "image_size": real.image_size,
    }
    if is_built_in(model):
        info, options = _family(str(model))
        return info.build(**facts, **options)
    with seeded(seed):
        network = plain_module(_call(load_factory(model) if isinstance(model, str) else model, facts))
    check_fits(network, real.train.images[:1], real.num_classes)
    return network


def is_built_in(model: str | ModelFactory) -> bool:
    """Whether a network is one of this package, which need not be asked what others are asked."""
    return isinstance(model, str) and ":" not in model


def _family(name: str) -> tuple[ModelInfo, dict[str, Any]]:
    """The family that a name belongs to, and the options that it spells."""
    for info in MODELS:
        options = spelled(name, info.name, info.options)
        if options is not None:
            return info, options
    raise unknown_name(MODELS.kind, name, MODELS.names())


def _call(factory: Any, facts: dict[str, int]) -> nn.Module:
    """What a factory returns for the facts that it accepts."""
    if isinstance(factory, nn.Module):
        return copied(factory)
    if not callable(factory):
        raise RequestError(f"the model is a {type(factory).__name__}, not a function that returns a torch.nn.Module")
    try:
        parameters = inspect.signature(factory).parameters
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        network = factory(**{key: value for key, value in facts.items() if takes_all or key in parameters})
    except RequestError:
        raise
    except Exception as error:  # whatever a user's code raises
        raise RequestError(
            f"the model function failed ({brief(error)}): it is called with those of {', '.join(facts)} that it accepts"
        ) from error
    if not isinstance(network, nn.Module):
        raise RequestError(f"the model function returned {type(network).__name__}, not a torch.nn.Module")
    return network


def same_model(one: str, other: str) -> bool:
    """Whether two names are of one network: a file lies anywhere, and what a family does by default may be spelled."""
    if is_code(one) or is_code(other):
        return is_code(one) and is_code(other) and same_code(one, other)
    return bool(_identity(one) == _identity(other))


def _identity(name: str) -> Any:
    """The same for all names of a network that is no code."""
    if ":" in name:  # a tag of timm names trained weights, which are not taken
        return name.lower().partition(".")[0]
    try:
        info, options = _family(name)
    except RequestError:
        return name.lower()
    usual = inspect.signature(info.build).parameters
    return info.name, {option: options.get(option, usual[option].default) for option in info.options}


def has_own_weights(model: str | ModelFactory) -> bool:
    """Whether a network may come with trained weights: a user's own may, of those with names few do."""
    if not isinstance(model, str) or is_code(model):
        return True
    return ":" not in model and _family(model)[0].pretrained


def model_name(model: str | ModelFactory) -> str:
    """How a result names its network: as given, or `module:function`, or `net.py:function` for a script's own."""
    if isinstance(model, str):
        return canonical(model)
    if isinstance(model, functools.partial):
        words = [*map(str, model.args), *(f"{name}={value}" for name, value in model.keywords.items())]
        return f"{model_name(model.func)}({', '.join(words)})"
    if isinstance(model, nn.Module):
        model = type(model)
    function = getattr(model, "__qualname__", type(model).__name__)
    script = getattr(sys.modules["__main__"], "__file__", None) if model.__module__ == "__main__" else None
    return canonical(f"{script}:{function}") if script else f"{model.__module__}:{function}"

"""Networks by name."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from datadistill.data.real import RealData
from datadistill.errors import RequestError
from datadistill.models.alexcifarnet import AlexCifarNet
from datadistill.models.convnet import ConvNet, parse_convnet
from datadistill.models.lenet import LeNet
from datadistill.models.mlp import MLP
from datadistill.models.norms import NORMS
from datadistill.models.schemes import SCHEMES, draw_weights
from datadistill.registry import Registry

__all__ = ["MODELS", "NORMS", "SCHEMES", "ModelFactory", "ModelInfo", "create_model", "draw_weights"]

ModelFactory = Callable[..., nn.Module]


@dataclass(frozen=True)
class ModelInfo:
    """A network family.

    Attributes:
        name: what people type.
        line: one line of explanation.
        build: called with `num_classes`, `in_channels` and `image_size`.
        paper: where it comes from.
    """

    name: str
    line: str
    build: ModelFactory
    paper: str


MODELS = Registry(
    "model",
    (
        ModelInfo("lenet", "two 5x5 convolutions, three linear layers; 28x28 or 32x32", LeNet, "LeCun et al. 1998"),
        ModelInfo(
            "convnet",
            "3 blocks of 128 channels; ConvNetD4, ConvNetW64, ConvNetBN, ... for others",
            ConvNet,
            "Gidaris and Komodakis 2018",
        ),
        ModelInfo(
            "alexcifarnet",
            "two 5x5 convolutions with local response norm, three linear layers; 32x32",
            AlexCifarNet,
            "Wang et al. 2018",
        ),
        ModelInfo("mlp", "two hidden layers of 128 units", MLP, "Zhao et al. 2021"),
    ),
)


def create_model(model: str | ModelFactory, real: RealData) -> nn.Module:
    """A network for a dataset, on the CPU, with whatever weights its constructor drew.

    Args:
        model: a name from `MODELS`, a ConvNet name such as `ConvNetD3W128BN`, or a function that returns a
            `torch.nn.Module` and is called with those of `num_classes`, `in_channels` and `image_size` it accepts.
        real: what it is for.

    Raises:
        RequestError: the name is unknown, or the network does not take such images.
    """
    facts: dict[str, int] = {
        "num_classes": real.num_classes,
        "in_channels": real.in_channels,
        "image_size": real.image_size,
    }
    if isinstance(model, str):
        options = parse_convnet(model)
        if options is not None:
            return ConvNet(**{**facts, **options})
        return MODELS.get(model).build(**facts)
    parameters = inspect.signature(model).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    network = model(**{key: value for key, value in facts.items() if takes_all or key in parameters})
    if not isinstance(network, nn.Module):
        raise RequestError(f"the model function returned {type(network).__name__}, not a torch.nn.Module")
    return network


def model_name(model: str | ModelFactory) -> str:
    """How a result names its network: as given, or `module:function`."""
    if isinstance(model, str):
        return model.lower()
    return f"{model.__module__}:{getattr(model, '__qualname__', type(model).__name__)}"

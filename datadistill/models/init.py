"""Initialisation schemes: how the weights of a network are drawn before training."""

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datadistill.utils.registry import Registry


@dataclass(frozen=True)
class SchemeInfo:
    """An initialisation scheme.

    Attributes:
        name: what people type.
        line: one line of explanation.
        fill: draws one weight tensor of two or more dimensions in place; None keeps each layer's own way.
    """

    name: str
    line: str
    fill: Callable[[Tensor], Tensor] | None


SCHEMES = Registry(
    "initialisation scheme",
    (
        SchemeInfo("xavier", "normal, variance 2 / (fan in + fan out)", nn.init.xavier_normal_),
        SchemeInfo("xavier-uniform", "uniform, same variance as xavier", nn.init.xavier_uniform_),
        SchemeInfo("he", "normal, variance 2 / fan in", nn.init.kaiming_normal_),
        SchemeInfo("he-out", "normal, variance 2 / fan out", lambda t: nn.init.kaiming_normal_(t, mode="fan_out")),
        SchemeInfo("orthogonal", "orthogonal rows or columns", nn.init.orthogonal_),
        SchemeInfo("normal", "normal, deviation 0.02", lambda t: nn.init.normal_(t, std=0.02)),
        SchemeInfo("default", "PyTorch's own for each layer", None),
    ),
)


_BORROWED = threading.Lock()


def draw_weights(module: nn.Module, scheme: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Fresh weights for a network.

    Biases start at zero and normalisation layers at the identity, except with `default`, which is whatever
    each layer's `reset_parameters` does.

    Args:
        module: the network, which on a CPU is left with the weights too.
        scheme: one of `SCHEMES`.
        generator: a CPU generator; one number is taken from it.

    Returns:
        Detached copies of all parameters, by name, on the module's device.
    """
    fill = SCHEMES.get(scheme).fill
    seed = int(torch.randint(2**62, (), generator=generator))
    device = next(module.parameters()).device
    if device.type != "cpu":
        module = copy.deepcopy(module).cpu()  # The same draw on every device.
    # Layers reset themselves from the global generator, so it is borrowed and given back as it was.
    with _BORROWED, torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
        for layer in module.modules():
            own = dict(layer.named_parameters(recurse=False))
            if not own:
                continue
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
            if fill is not None:
                _refill(own, fill)
        for buffer, before in buffers:  # running statistics are no weights, but are reset with them
            buffer.copy_(before)
        return {name: weight.detach().clone().to(device) for name, weight in module.named_parameters()}


def _refill(own: dict[str, nn.Parameter], fill: Callable[[Tensor], Tensor]) -> None:
    weights = [weight for weight in own.values() if weight.dim() >= 2]
    for weight in weights:
        fill(weight)
    if weights and "bias" in own:
        nn.init.zeros_(own["bias"])

"""Features: what a network's last linear layer sees."""

import copy
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from datadistill.engine.functional import Network
from datadistill.utils.errors import RequestError


def headless(network: Network, image: Float[Tensor, "1 c h w"]) -> Network:
    """The network without the linear layer that is called last: its outputs are features [n, d].

    It is called with the weights of the whole network.

    Args:
        network: any that has a linear layer.
        image: any image, to see which layer is called last.

    Raises:
        RequestError: there is no linear layer.
    """
    module, called = copy.deepcopy(network.module), list[str]()
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(lambda _, inputs, name=name: called.append(name))
    with torch.no_grad():
        module.to(image.dtype)(image)
    if not called:
        raise RequestError("this network has no linear layer, which features are taken from")
    # A copy without hooks.
    module = copy.deepcopy(network.module)
    owner, _, last = called[-1].rpartition(".")
    setattr(module.get_submodule(owner), last, nn.Flatten())
    return replace(network, module=module)

"""Features: the inputs of a network's last linear layer."""

import copy
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from datadistill.engine.functional import Network
from datadistill.utils.errors import RequestError


def headless(network: Network, image: Float[Tensor, "1 c h w"]) -> Network:
    """Feature extractor: the network up to the linear layer that is called last; its outputs are [n, d].

    It is called with the weights of the whole network. What follows that layer has no part in its outputs.

    Args:
        network: any that has a linear layer.
        image: any image, to see which layer is called last.

    Raises:
        RequestError: there is no linear layer.
    """
    module, called = copy.deepcopy(network.module).to(image.dtype), list[str]()
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(lambda _, inputs, name=name: called.append(name))
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    with torch.no_grad():
        # Two, because batch normalisation may have no statistics of one.
        replace(network, module=module, operations=()).logits(weights, torch.cat([image, image]))
    if not called:
        raise RequestError(
            "this network has no linear layer, which features are taken from: the baselines random, kmeans and average "
            "and the methods dd and dc need none"
        )
    last = called[-1]

    def remember(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        layer.seen = inputs[0].flatten(1)

    def recall(whole: nn.Module, inputs: Any, output: Any) -> Tensor:
        return vars(whole.get_submodule(last)).pop("seen")  # type: ignore[no-any-return]

    # They find what they need in the module that is called, so that they go along with its copies in other threads.
    module = copy.deepcopy(network.module)
    module.get_submodule(last).register_forward_pre_hook(remember)
    module.register_forward_hook(recall)
    return replace(network, module=module)

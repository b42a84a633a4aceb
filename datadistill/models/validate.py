"""Check that a network takes a dataset's images and gives one score for each class."""

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from datadistill.utils.errors import RequestError, brief
from datadistill.utils.runtime import is_out_of_memory

_ARGUMENTS = "num_classes, in_channels and image_size"


def check_scores(answer: Callable[[Tensor], Any], images: Float[Tensor, "n c h w"], num_classes: int) -> None:
    """Refuse a network that does not answer some images with one finite score for each class.

    Args:
        answer: calls the network.
        images: a few, of any content.
        num_classes: how many scores each image must get.

    Raises:
        RequestError: what is wrong, and how to mend it.
    """
    shape = list(images.shape[1:])
    try:
        scores = answer(images)
    except Exception as error:  # whatever a user's code raises
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0].rstrip(".:")
        raise RequestError(
            f"the network does not take images of shape {shape} ({reason}): choose one that does, or let the function "
            f"that makes it take {_ARGUMENTS}, which it is called with"
        ) from error
    if not isinstance(scores, Tensor):
        raise RequestError(
            f"the network answers with a {type(scores).__name__}, not with a tensor: return the class scores alone"
        )
    wanted = [len(images), num_classes]
    if list(scores.shape) != wanted:
        raise RequestError(
            f"the network answers {len(images)} images with numbers of shape {list(scores.shape)}, but "
            f"{num_classes} classes need {wanted}: give it one score for each class, for instance with num_classes as "
            "an argument of the function that makes it"
        )
    if scores.dtype not in (torch.float32, torch.float64):
        raise RequestError(
            f"the network answers with numbers of type {_kind(scores)}, but scores must be float32: convert them with "
            ".float() at its end"
        )
    if not bool(scores.isfinite().all()):
        raise RequestError(
            "the network answers ordinary images with numbers that are not finite: look for a division by zero, a "
            "logarithm, or weights that are never set"
        )


def copied(module: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        RequestError: there is none.
    """
    try:
        return copy.deepcopy(module)
    except Exception as error:  # whatever a module's attributes raise
        raise RequestError(
            f"the network cannot be copied ({brief(error)}): make it of what copy.deepcopy copies"
        ) from error


def require_size(fits: bool, takes: str, image_size: int) -> None:
    """Refuse images of a size that a network of ours does not take; `takes` says which it does.

    Raises:
        RequestError: they do not fit.
    """
    if not fits:
        raise RequestError(f"{takes}, these have {image_size}x{image_size}: use --model convnet or mlp")


def plain_module(module: nn.Module) -> nn.Module:
    """The module inside of what only spreads or compiles it, on the CPU.

    Raises:
        RequestError: its weights cannot be replaced, or are not float32.
    """
    while isinstance(module, _WRAPPERS) or type(module).__name__ == "OptimizedModule":
        module = module._orig_mod if hasattr(module, "_orig_mod") else module.module  # type: ignore[assignment]
    for name, layer in module.named_modules():
        if isinstance(layer, torch.jit.ScriptModule):
            what = f"layer {name}" if name else "the network"
            raise RequestError(
                f"{what} is compiled by torch.jit, so that its weights cannot be replaced: return the module that "
                "torch.jit was given"
            )
    for name, weight in module.named_parameters():
        if weight.dtype != torch.float32 and (weight.requires_grad or weight.is_complex()):
            raise RequestError(
                f"weight {name} is of type {_kind(weight)}, but weights must be float32: call .float() on the network"
                + (", or keep real and imaginary part in two weights" if weight.is_complex() else "")
            )
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        raise RequestError("the network is on device meta and has no numbers: make it on the CPU")
    return module.cpu()


_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_fits(module: nn.Module, image: Float[Tensor, "1 c h w"], num_classes: int) -> None:
    """The same for a module, which is left as it is, and so are the global random numbers.

    Raises:
        RequestError: it does not fit.
    """
    draw = torch.Generator().manual_seed(0)
    images = torch.randn((2, *image.shape[1:]), generator=draw)
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        # They take their shapes from the first images; what fails here fails below, in a sentence.
        with suppress(Exception), torch.no_grad(), torch.random.fork_rng(devices=[]):
            module(images)
    buffers = [] if any(map(is_lazy, module.buffers())) else [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            check_scores(module, images, num_classes)
    finally:
        for layer, mode in modes:
            layer.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)

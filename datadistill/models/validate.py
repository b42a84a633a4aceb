"""Whether a network takes a dataset's images and gives one score for each class."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from datadistill.utils.errors import RequestError
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
    if not bool(scores.isfinite().all()):
        raise RequestError(
            "the network answers ordinary images with numbers that are not finite: look for a division by zero, a "
            "logarithm, or weights that are never set"
        )


def check_fits(module: nn.Module, image: Float[Tensor, "1 c h w"], num_classes: int) -> None:
    """The same for a module, which is left as it is, and so are the global random numbers.

    Raises:
        RequestError: it does not fit.
    """
    draw = torch.Generator().manual_seed(0)
    images = torch.randn((2, *image.shape[1:]), generator=draw)
    modes = [(layer, layer.training) for layer in module.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            check_scores(module, images.to(next(iter(module.parameters()), images).dtype), num_classes)
    finally:
        for layer, mode in modes:
            layer.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)

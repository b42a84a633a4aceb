"""Normalisation layers that can be differentiated twice and keep no running state."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from datadistill.utils.registry import Registry


@dataclass(frozen=True)
class NormInfo:
    """A kind of normalisation.

    Attributes:
        name: what people type.
        line: one line of explanation.
        short: how model names spell it, as in ConvNetIN.
        build: makes the layer for so many channels.
    """

    name: str
    line: str
    short: str
    build: Callable[[int], nn.Module]


def _batch(channels: int) -> nn.Module:
    # No running statistics: they would make a network's output depend on the order of earlier calls, and
    # a functional call could not hand them on. Training and testing both use the batch's own.
    return nn.BatchNorm2d(channels, track_running_stats=False)


def _group(channels: int) -> nn.Module:
    return nn.GroupNorm(4 if channels % 4 == 0 else 1, channels)


NORMS = Registry(
    "norm",
    (
        NormInfo("none", "no normalisation", "NN", lambda channels: nn.Identity()),
        NormInfo("batch", "over the batch, always its own statistics", "BN", _batch),
        NormInfo("layer", "over all channels of an image", "LN", lambda channels: nn.GroupNorm(1, channels)),
        NormInfo(
            "instance",
            "over each channel of an image",
            "IN",
            # As the field's reference ConvNet spells it. nn.InstanceNorm2d goes through batch norm, whose
            # reverse-over-forward derivative is wrong in torch 2.13 (pytorch#196699).
            lambda channels: nn.GroupNorm(channels, channels),
        ),
        NormInfo("group", "over groups of channels of an image", "GN", _group),
    ),
)

"""From pixels to what a network is fed, and back."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of pixels in [0, 1].

    Attributes:
        mean: one number per channel.
        std: one number per channel, positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def measure(cls, pixels: UInt8[Tensor, "n h w c"]) -> "Normalization":
        """Mean and deviation of 8-bit pixels; a channel without contrast gets deviation 1."""
        values = torch.arange(256, dtype=torch.float64) / 255
        mean, std = [], []
        for index in range(pixels.shape[-1]):
            channel = pixels[..., index].flatten()
            share = torch.bincount(channel, minlength=256).double() / len(channel)
            centre = float((share * values).sum())
            spread = float((share * (values - centre) ** 2).sum().sqrt())
            mean.append(centre)
            std.append(spread if spread > 0 else 1.0)
        return cls(tuple(mean), tuple(std))

    def apply(self, pixels: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n c h w"]:
        """Normalised float32 images of 8-bit pixels."""
        images = pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)
        mean, std = self._tensors(images)
        return images.sub_(mean).div_(std)

    def invert(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Pixels of normalised images; in [0, 1] for real images, anywhere for learned ones."""
        mean, std = self._tensors(images)
        return images * std + mean

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.mean, dtype=like.dtype, device=like.device)
        std = torch.tensor(self.std, dtype=like.dtype, device=like.device)
        return mean[:, None, None], std[:, None, None]

"""Transforms between pixels and network inputs: normalisation and ZCA whitening."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from datadistill.utils.errors import DatadistillError
from datadistill.utils.progress import Bar, quiet

_PIECE = 1000
"""Images that are whitened at a time."""


@dataclass(frozen=True, eq=False)
class Whitening:
    """ZCA: flattened images become (x - mean) matrix, whose pixels are less correlated.

    The matrix is D U diag(1 / sqrt(S + eps)) U^T, where U diag(S) U^T is the covariance of pixels in [0, 1] and D takes
    the normalisation by channel back. So a direction of pixels of variance s has variance s / (s + eps) afterwards,
    whatever the channels were divided by, as in the code of trajectory matching.

    Attributes:
        mean: of the normalised images it was learned from, flattened as [C, H, W].
        matrix: applied to normalised images.
    """

    mean: Float[Tensor, "d"]
    matrix: Float[Tensor, "d d"]

    EPS = 0.1
    """What is added to the variances of pixels, so that directions of little contrast are not blown up; the field's."""

    @classmethod
    def learn(cls, images: Float[Tensor, "n c h w"], std: Sequence[float], bar: Bar = quiet) -> "Whitening":
        """ZCA whitening of normalised images, with the eigenvectors of the covariance in float64.

        Args:
            images: normalised by channel.
            std: what their channels were divided by, one number each.
            bar: shows progress.
        """
        pieces = torch.split(images.flatten(1), _PIECE)
        mean = torch.stack([piece.double().sum(0) for piece in pieces]).sum(0) / len(images)
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=images.device)
        with bar("whitening", len(pieces) + 1) as count:
            for piece in pieces:
                # Rounding in single precision is a million times smaller than `EPS`.
                centred = piece - mean.to(piece)
                covariance += centred.T @ centred
                count()
            # As kornia does: the unbiased estimate.
            scale = torch.tensor(std, dtype=torch.float64).repeat_interleave(images[0, 0].numel()).to(covariance)
            covariance.mul_(scale[:, None]).mul_(scale).div_(max(len(images) - 1, 1))
            variances, directions = torch.linalg.eigh(covariance)
            count()
        # Rounding leaves variances of zero a little below it.
        scaled = directions * (variances.clamp_(min=0) + cls.EPS).rsqrt()
        return cls(mean.float(), (scale[:, None] * (scaled @ directions.T)).float())

    def apply(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Whitened images of normalised ones."""
        return self._mapped(images, -self.mean, self.matrix, torch.zeros_like(self.mean))

    def invert(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalised images of whitened ones.

        Raises:
            DatadistillError: the matrix has no inverse, which only one from a file can lack.
        """
        return self._mapped(images, torch.zeros_like(self.mean), self._inverse, self.mean)

    @cached_property
    def _inverse(self) -> Float[Tensor, "d d"]:
        found, info = torch.linalg.inv_ex(self.matrix.double())
        inverse: Tensor = found.float()
        if int(info) != 0 or not bool(inverse.isfinite().all()):
            raise DatadistillError("the images cannot be un-whitened: their ZCA matrix has no inverse")
        return inverse

    @staticmethod
    def _mapped(
        images: Float[Tensor, "n c h w"],
        before: Float[Tensor, "d"],
        matrix: Float[Tensor, "d d"],
        after: Float[Tensor, "d"],
    ) -> Float[Tensor, "n c h w"]:
        before, matrix, after = (tensor.to(images) for tensor in (before, matrix, after))
        pieces = [(piece + before) @ matrix + after for piece in torch.split(images.flatten(1), _PIECE)]
        return torch.cat(pieces).view_as(images) if pieces else images.clone()


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of pixels in [0, 1], and what comes after them.

    Attributes:
        mean: one number per channel.
        std: one number per channel, positive.
        zca: whitens the normalised images, if anything does.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    zca: Whitening | None = field(default=None, repr=False)

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
        images.sub_(mean).div_(std)
        return images if self.zca is None else self.zca.apply(images)

    def invert(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Pixels of normalised images; in [0, 1] for real images, anywhere for learned ones."""
        mean, std = self._tensors(images)
        return (images if self.zca is None else self.zca.invert(images)) * std + mean

    def known(self) -> dict[str, Any]:
        """JSON-ready: all but the numbers of the whitening."""
        return {"mean": list(self.mean), "std": list(self.std)} | ({} if self.zca is None else {"zca": True})

    @property
    def is_whole(self) -> bool:
        """Whether there are as many deviations as means, all of them positive."""
        return len(self.mean) == len(self.std) and all(deviation > 0 for deviation in self.std)

    @property
    def by_channel(self) -> "Normalization":
        """Mean and deviation alone."""
        return Normalization(self.mean, self.std)

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.mean, dtype=like.dtype, device=like.device)
        std = torch.tensor(self.std, dtype=like.dtype, device=like.device)
        return mean[:, None, None], std[:, None, None]

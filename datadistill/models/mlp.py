"""The field's multi-layer perceptron: two hidden layers of 128 units (Zhao et al. 2021)."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        num_classes: outputs.
        in_channels: channels of an image.
        image_size: height and width in pixels.
        width: units of a hidden layer.
        depth: hidden layers.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 28,
        width: int = 128,
        depth: int = 2,
    ) -> None:
        super().__init__()
        sizes = [in_channels * image_size**2] + [width] * depth
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        layers.append(nn.Linear(sizes[-1], num_classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Class scores (logits)."""
        return self.layers(images)  # type: ignore[no-any-return]

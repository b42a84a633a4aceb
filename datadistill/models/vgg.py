"""VGG11 for small images, as dataset condensation uses it (Simonyan and Zisserman 2015; Zhao et al. 2021)."""

from jaxtyping import Float
from torch import Tensor, nn

from datadistill.models.norms import NORMS
from datadistill.models.validate import require_size

# Channels of the convolutions of each block; 2x2 max pooling ends a block.
_BLOCKS = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG11(nn.Module):
    """Eight 3x3 convolutions with normalisation and ReLU in five blocks that end in max pooling, one linear layer.

    9,231,114 weights for colour images of 32x32 pixels, ten classes and any norm but `none`.

    Args:
        num_classes: outputs.
        in_channels: channels of an image.
        image_size: 28 (padded to 32) pixels, or 32 or more.
        norm: one of `NORMS`.

    Raises:
        RequestError: the images are too small.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, norm: str = "instance"
    ) -> None:
        super().__init__()
        size = 32 if image_size == 28 else image_size
        require_size(size >= 32, "VGG11 takes images of 28x28 pixels, or of 32x32 or more", image_size)
        layers: list[nn.Module] = []
        channels = in_channels
        for block in _BLOCKS:
            for width in block:
                padding = 3 if image_size == 28 and not layers else 1
                layers += [nn.Conv2d(channels, width, 3, padding=padding), NORMS.get(norm).build(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * (size // 32) ** 2, num_classes)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Class scores (logits)."""
        return self.classifier(self.features(images).flatten(1))  # type: ignore[no-any-return]

"""AlexNet for small images, as dataset condensation uses it (Krizhevsky et al. 2012; Zhao et al. 2021)."""

from jaxtyping import Float
from torch import Tensor, nn

from datadistill.models.norms import NORMS
from datadistill.models.validate import require_size

# Channels, width of the kernel, and whether 2x2 max pooling follows.
_LAYERS = ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))


class AlexNet(nn.Module):
    """Five convolutions with ReLU, 2x2 max pooling after the first, second and last, one linear layer.

    1,872,202 weights for colour images of 32x32 pixels and ten classes.

    Args:
        num_classes: outputs.
        in_channels: channels of an image.
        image_size: 8 pixels or more; 28 are padded to 32.
        norm: one of `NORMS`, between each convolution and its ReLU.

    Raises:
        RequestError: the images are too small.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, norm: str = "none") -> None:
        super().__init__()
        require_size(image_size >= 8, "AlexNet takes images of 8x8 pixels or more", image_size)
        size = 32 if image_size == 28 else image_size
        layers: list[nn.Module] = []
        channels = in_channels
        for width, kernel, pooled in _LAYERS:
            padding = 4 if image_size == 28 and not layers else kernel // 2
            layers += [nn.Conv2d(channels, width, kernel, padding=padding), NORMS.get(norm).build(width), nn.ReLU()]
            if pooled:
                layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * (size // 8) ** 2, num_classes)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Class scores (logits)."""
        return self.classifier(self.features(images).flatten(1))  # type: ignore[no-any-return]

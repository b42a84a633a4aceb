"""The ConvNet family of the field (Gidaris and Komodakis 2018; Zhao et al. 2021)."""

from jaxtyping import Float
from torch import Tensor, nn

from datadistill.models.norms import NORMS
from datadistill.utils.errors import RequestError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "swish": nn.SiLU,
}
POOLINGS: dict[str, type[nn.Module] | None] = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d, "none": None}


class ConvNet(nn.Module):
    """`depth` blocks of 3x3 convolution, normalisation, activation and 2x2 pooling, then one linear layer.

    Args:
        num_classes: outputs.
        in_channels: channels of an image.
        image_size: height and width in pixels; each pooling halves it, and 28 counts as 32.
        depth: blocks.
        width: channels of a convolution.
        norm: one of `NORMS`.
        activation: relu, leakyrelu, sigmoid or swish.
        pooling: avg, max or none.

    Raises:
        RequestError: an unknown choice, or more poolings than the image has halvings.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        depth: int = 3,
        width: int = 128,
        norm: str = "instance",
        activation: str = "relu",
        pooling: str = "avg",
    ) -> None:
        super().__init__()
        size = 32 if image_size == 28 else image_size
        pool = POOLINGS[pooling]
        if min(depth, width) < 1:
            raise RequestError(f"a ConvNet needs depth and width of at least 1, not {depth} and {width}")
        if pool is not None and size >> depth < 1:
            raise RequestError(
                f"a ConvNet of depth {depth} does not fit images of {image_size}x{image_size} "
                "pixels: each block halves them"
            )
        blocks: list[nn.Module] = []
        channels = in_channels
        for block in range(depth):
            # 28x28 images are padded to 32x32 by the first convolution, as in the reference network.
            padding = 3 if block == 0 and image_size == 28 else 1
            blocks += [nn.Conv2d(channels, width, 3, padding=padding), NORMS.get(norm).build(width)]
            blocks.append(ACTIVATIONS[activation]())
            if pool is not None:
                blocks.append(pool(2, 2))
                size //= 2
            channels = width
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * size * size, num_classes)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Class scores (logits)."""
        return self.classifier(self.features(images).flatten(1))  # type: ignore[no-any-return]

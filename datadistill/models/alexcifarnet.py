"""AlexCifarNet: the network of the 2018 paper for CIFAR-10, after cuda-convnet's (Krizhevsky 2012)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from datadistill.models.validate import require_size


class LocalResponseNorm(nn.Module):
    """x / (1 + alpha / n * (sum of x^2 over n neighbouring channels))^beta (Krizhevsky et al. 2012, section 3.3).

    The same function as `torch.nn.LocalResponseNorm(n, alpha, beta, 1)`. The sum is a product with a matrix of ones in
    a band, which is faster to differentiate twice than sums of slices or an average pooling in three dimensions.

    Args:
        n: channels in a neighbourhood.
        alpha: weight of the sum.
        beta: power.
    """

    def __init__(self, n: int, alpha: float, beta: float) -> None:
        super().__init__()
        self.n, self.alpha, self.beta = n, alpha, beta

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Every pixel divided by a norm over neighbouring channels."""
        channels = images.shape[1]
        band = images.new_ones(channels, channels).triu(-(self.n // 2)).tril((self.n - 1) // 2)
        summed = (band @ images.square().flatten(2)).view_as(images)
        # exp and log are vectorised where pow is not.
        return images * torch.exp(-self.beta * torch.log1p(self.alpha / self.n * summed))


class AlexCifarNet(nn.Module):
    """Two 5x5 convolutions of 64 channels with pooling and local response normalisation, three linear layers.

    1,756,426 weights for ten classes.

    Args:
        num_classes: outputs.
        in_channels: channels of an image.
        image_size: must be 32.

    Raises:
        RequestError: another image size.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        require_size(image_size == 32, "AlexCifarNet takes images of 32x32 pixels", image_size)
        self.conv1 = nn.Conv2d(in_channels, 64, 5, padding=2)
        self.conv2 = nn.Conv2d(64, 64, 5, padding=2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.norm = LocalResponseNorm(4, 0.001 / 9, 0.75)
        self.fc1 = nn.Linear(64 * 8 * 8, 384)
        self.fc2 = nn.Linear(384, 192)
        self.fc3 = nn.Linear(192, num_classes)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Class scores (logits)."""
        # ReLU and the maximum may change places; after pooling there is a quarter of the numbers.
        hidden = self.norm(F.relu(self.pool(self.conv1(images))))
        hidden = self.pool(self.norm(F.relu(self.conv2(hidden))))
        hidden = F.relu(self.fc1(hidden.flatten(1)))
        hidden = F.relu(self.fc2(hidden))
        return self.fc3(hidden)  # type: ignore[no-any-return]

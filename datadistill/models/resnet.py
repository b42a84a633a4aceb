"""ResNet18 for small images, as dataset condensation uses it (He et al. 2016; Zhao et al. 2021)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from datadistill.models.norms import NORMS
from datadistill.models.validate import require_size


class Block(nn.Module):
    """Two 3x3 convolutions with normalisation, added to their input.

    Args:
        before: channels of the input.
        after: channels of the output.
        stride: of the first convolution.
        norm: one of `NORMS`.
    """

    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        super().__init__()
        build = NORMS.get(norm).build
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = build(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = build(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), build(after))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """What the next block sees."""
        hidden = F.relu(self.norm1(self.conv1(images)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(images))


class ResNet18(nn.Module):
    """A 3x3 convolution, four stages of two residual blocks, the average over what remains, one linear layer.

    11,173,962 weights for colour images, ten classes and any norm but `none`.

    Args:
        num_classes: outputs.
        in_channels: channels of an image.
        image_size: 9 pixels or more, of which three halvings leave more than one to normalise over.
        norm: one of `NORMS`.

    Raises:
        RequestError: the images are too small.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, norm: str = "instance"
    ) -> None:
        super().__init__()
        require_size(image_size >= 9, "ResNet18 takes images of 9x9 pixels or more", image_size)
        self.conv = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.norm = NORMS.get(norm).build(64)
        blocks, channels = list[nn.Module](), 64
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [Block(channels, width, stride, norm), Block(width, width, 1, norm)]
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Class scores (logits)."""
        hidden = self.blocks(F.relu(self.norm(self.conv(images))))
        return self.classifier(hidden.mean((2, 3)))  # type: ignore[no-any-return]

"""AlexNet (Krizhevsky et al., 2012) with batch norm and a low-dimensional feature of unit length.

The paper does not give its shape. For 224 pixels this is the one of DeepCluster (Caron et al., 2018) without
the Sobel filter; the one for small images is this project's.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from models.shared_dropout import SharedDropout


class AlexNet(nn.Module):
    """Five convolutions (96-256-384-384-256 channels), two layers 4096 wide, and a linear map to D.

    The side of the maps for a large stem and 224 pixels: conv1 55, conv2 27, conv3 to conv5 13, pooled to 6.
    For a small stem and 32 pixels: conv1 32, conv2 16, conv3 to conv5 8, pooled to 4. Maps of other sizes are
    brought to 6 or 4 by adaptive average pooling, so that the weights fit images of every size: from 63
    pixels with a large stem, from 8 with a small one.

    Args:
        low_dim: length D of the feature.
        small_stem: conv1 is 5x5 of stride 1 instead of 11x11 of stride 4.
    """

    SMALLEST_LARGE = 63
    """Side of the smallest image, in pixels, of which the large stem's output is not empty."""

    stages: tuple[str, ...] = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc")

    def __init__(self, low_dim: int, small_stem: bool):
        super().__init__()
        if small_stem:
            self.conv1 = _convolution(3, 96, kernel=5, stride=1, padding=2)
        else:
            self.conv1 = _convolution(3, 96, kernel=11, stride=4, padding=2)
        self.conv2 = _convolution(96, 256, kernel=5, padding=2)
        self.conv3 = _convolution(256, 384, kernel=3, padding=1)
        self.conv4 = _convolution(384, 384, kernel=3, padding=1)
        self.conv5 = _convolution(384, 256, kernel=3, padding=1)
        # the padding keeps small maps from vanishing: 8 pixels are pooled to 4, 2 and 1
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1 if small_stem else 0)
        side = 4 if small_stem else 6
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        self.hidden = nn.Sequential(
            SharedDropout(0.5),
            nn.Linear(256 * side * side, 4096),
            nn.ReLU(inplace=True),
            SharedDropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
        )
        self.fc = nn.Linear(4096, low_dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D) float32, rows of unit length."""
        maps = self.conv2(self.pool(self.conv1(images)))
        maps = self.conv3(self.pool(maps))
        return self._feature(self.conv5(self.conv4(maps)))

    def stage_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The activations after each stage, by name: of a convolution before it is pooled; `fc` is the feature."""
        outputs = {"conv1": self.conv1(images)}
        outputs["conv2"] = self.conv2(self.pool(outputs["conv1"]))
        outputs["conv3"] = self.conv3(self.pool(outputs["conv2"]))
        outputs["conv4"] = self.conv4(outputs["conv3"])
        outputs["conv5"] = self.conv5(outputs["conv4"])
        outputs["fc"] = self._feature(outputs["conv5"])
        return outputs

    def _feature(self, maps: Tensor) -> Tensor:
        features = self.fc(self.hidden(self.avgpool(self.pool(maps)).flatten(1)))
        # autocast leaves half precision here, whose squares may underflow
        return F.normalize(features.float(), dim=1)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Sequential:
    """Convolution, batch norm (whose shift makes a bias needless) and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )

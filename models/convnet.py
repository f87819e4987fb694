"""A small convolutional network with a low-dimensional feature of unit length."""

from torch import Tensor, nn
from torch.nn import functional as F


class ConvNet(nn.Module):
    """Four 3x3 convolutions and a linear map to D, for small images on a CPU and for tests.

    Each convolution is followed by batch norm and ReLU; `layer2` and `layer3` halve the side of the maps, whose
    mean over all positions `fc` takes. Every image size fits. The weights start from PyTorch's default
    initialisation, U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)).

    Args:
        low_dim: length D of the feature.
        small_stem: the stem has stride 1 and keeps the images' side; otherwise it has stride 2 and a max-pool of
            stride 2, and leaves maps of a quarter of the side.
    """

    WIDTHS = (32, 32, 64, 128)
    """Channels after the stem, layer1, layer2 and layer3."""

    stages: tuple[str, ...] = ("stem", "layer1", "layer2", "layer3", "fc")

    def __init__(self, low_dim: int, small_stem: bool):
        super().__init__()
        stem, *layers = self.WIDTHS
        pool = () if small_stem else (nn.MaxPool2d(kernel_size=3, stride=2, padding=1),)
        self.stem = nn.Sequential(*_convolution(3, stem, stride=1 if small_stem else 2), *pool)
        self.layer1 = _convolution(stem, layers[0], stride=1)
        self.layer2 = _convolution(layers[0], layers[1], stride=2)
        self.layer3 = _convolution(layers[1], layers[2], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(layers[2], low_dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D) float32, rows of unit length."""
        return self.stage_outputs(images)["fc"]

    def stage_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The activations after each stage, by name; `stem` is after its max-pool, `fc` is the feature."""
        outputs = {"stem": self.stem(images)}
        outputs["layer1"] = self.layer1(outputs["stem"])
        outputs["layer2"] = self.layer2(outputs["layer1"])
        outputs["layer3"] = self.layer3(outputs["layer2"])
        features = self.fc(self.avgpool(outputs["layer3"]).flatten(1))
        # autocast leaves half precision here, whose squares may underflow
        outputs["fc"] = F.normalize(features.float(), dim=1)
        return outputs


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Convolution, batch norm (whose shift makes a bias needless) and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )

"""ResNet (He et al., 2016) with a low-dimensional feature of unit length."""

from collections.abc import Sequence
from functools import partial
from typing import Union

import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck


class ResNet(torchvision.models.resnet.ResNet):
    """torchvision's ResNet, so the names of the weights are torchvision's, with `fc` as the linear map to D.

    Args:
        block: the kind of residual block.
        layers: number of blocks in each of the four stages.
        low_dim: length D of the feature.
        small_stem: a 3x3 convolution of stride 1 and no max-pool, as the authors' code has for 32x32 images;
            otherwise the usual 7x7 of stride 2 with max-pool.
    """

    stages: tuple[str, ...] = ("stem", "layer1", "layer2", "layer3", "layer4", "fc")

    def __init__(
        self,
        block: type[Union[BasicBlock, Bottleneck]],
        layers: Sequence[int],
        low_dim: int,
        small_stem: bool,
    ):
        super().__init__(block, list(layers), num_classes=low_dim)
        if small_stem:
            self.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()  # PyTorch's default, as in the authors' code, in place of torchvision's

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D) float32, rows of unit length."""
        return _unit(super().forward(images))

    def stage_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The activations after each stage, by name; `stem` is after its max-pool, `fc` is the feature."""
        outputs = {"stem": self.maxpool(self.relu(self.bn1(self.conv1(images))))}
        outputs["layer1"] = self.layer1(outputs["stem"])
        outputs["layer2"] = self.layer2(outputs["layer1"])
        outputs["layer3"] = self.layer3(outputs["layer2"])
        outputs["layer4"] = self.layer4(outputs["layer3"])
        outputs["fc"] = _unit(self.fc(self.avgpool(outputs["layer4"]).flatten(1)))
        return outputs


def _unit(features: Tensor) -> Tensor:
    # autocast leaves half precision here, whose squares may underflow
    return F.normalize(features.float(), dim=1)


resnet18 = partial(ResNet, BasicBlock, (2, 2, 2, 2))
resnet34 = partial(ResNet, BasicBlock, (3, 4, 6, 3))
resnet50 = partial(ResNet, Bottleneck, (3, 4, 6, 3))
resnet101 = partial(ResNet, Bottleneck, (3, 4, 23, 3))
resnet152 = partial(ResNet, Bottleneck, (3, 8, 36, 3))

"""Attention maps: Grad-CAM (Selvaraju et al. 2017) without classes.

It explains not a class score but the similarity x_i . m_j of image i to one row of the memory bank: the
maps A_c of a late stage are weighted by the mean gradient of that similarity, and the positive part of their sum
shows what makes the image similar to its neighbour.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lib.figures import importing_matplotlib

with importing_matplotlib():
    import matplotlib

SMALLEST_MAP = 4
"""The fewest rows of a stage's maps: smaller maps show positions only roughly."""


@dataclass(frozen=True)
class Attention:
    """The attention maps of B images.

    Attributes:
        stage: the stage whose activations are weighted.
        maps: (B, h, w) float32, at least 0, the largest of each image 1 (or all 0 where nothing contributes to
            the similarity).
    """

    stage: str
    maps: Tensor


def attention(network: nn.Module, images: Tensor, rows: Tensor) -> Attention:
    """Grad-CAM of the similarity between each image and a row of the bank.

    Args:
        network: from `models.build`; it is put into evaluation mode, and no gradient is left in it.
        images: (B, 3, S, S).
        rows: (B, D), the bank row of each image's neighbour.
    """
    network.eval()
    with torch.enable_grad():
        outputs: dict[str, Tensor] = network.stage_outputs(images)  # type: ignore[operator]  # of every network of models.build
        stage = attention_stage(outputs)
        activations = outputs[stage]  # (B, C, h, w)
        similarity = (outputs["fc"] * rows).sum()  # summed over images, which are independent in evaluation mode
        (gradient,) = torch.autograd.grad(similarity, activations)
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    maps = F.relu((weights * activations.detach()).sum(dim=1))  # (B, h, w)
    largest = maps.amax(dim=(1, 2), keepdim=True)
    return Attention(stage, maps / torch.where(largest > 0, largest, torch.ones_like(largest)))


def attention_stage(outputs: dict[str, Tensor]) -> str:
    """The last stage whose maps have `SMALLEST_MAP` rows, or the last one with the largest maps if none has."""
    sides = {name: output.shape[2] for name, output in outputs.items() if output.dim() == 4}
    wanted = min(SMALLEST_MAP, max(sides.values()))
    return [name for name, side in sides.items() if side >= wanted][-1]


def overlaid(image: Image.Image, attended: np.ndarray, side: int) -> Image.Image:
    """The image (square), `side` pixels wide, with the map (h, w) over it, from dark (0) to yellow (1)."""
    small = image.size[0] < side // 2
    base = image.convert("L").resize((side, side), Image.Resampling.NEAREST if small else Image.Resampling.BILINEAR)
    heat = Image.fromarray((attended * 255).round().astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
    colours = matplotlib.colormaps["inferno"](np.asarray(heat))[..., :3]
    grey = np.asarray(base, dtype=np.float64)[..., None] / 255
    mixed = 0.45 * grey + 0.55 * colours
    return Image.fromarray((mixed * 255).round().astype(np.uint8))

"""What a feature is: the output of the network or what its last layer takes, whitened or not."""

from dataclasses import dataclass, replace
from typing import Optional

from torch import Tensor, nn

from lib.distributed.world import World
from lib.evaluation.whitening import Whitening
from lib.nn.embedder import Embedder

EMBEDDING, BACKBONE = "embedding", "backbone"


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """Turns images into unit features, by a network and, where they are whitened, by what training features gave.

    Attributes:
        level: `embedding`, the network's output of D numbers; or `backbone`, the activations h that the last layer
            `fc` takes, h / |h| (512 numbers of a ResNet18, 2,048 of a ResNet50, 4,096 of an AlexNet).
        whitened: whether features of that level are whitened.
        whitening: how; None until it is fitted, and where nothing is whitened.
    """

    level: str = EMBEDDING
    whitened: bool = False
    whitening: Optional[Whitening] = None

    @property
    def is_plain(self) -> bool:
        """Whether features are the network's output as it is, as in the memory bank."""
        return self.level == EMBEDDING and not self.whitened

    def __str__(self) -> str:
        return f"{self.level}, whitened" if self.whitened else self.level

    def is_like(self, other: "FeatureSpace") -> bool:
        """Whether both are of one level and whitened or not alike, fitted or not."""
        return (self.level, self.whitened) == (other.level, other.whitened)

    def dim(self, network: nn.Module, low_dim: int) -> int:
        """Numbers of a feature of a network whose output has `low_dim`."""
        return low_dim if self.level == EMBEDDING else network.fc.in_features

    def frozen(self, embedder: Embedder) -> Embedder:
        """The network for evaluation: images (B, 3, S, S) to unit rows (B, d) of the level, not yet whitened."""
        return embedder.frozen(backbone=self.level == BACKBONE)

    @property
    def flags(self) -> str:
        """The options that ask for it."""
        return f"--features {self.level} --whiten" if self.whitened else f"--features {self.level}"

    def fitted(self, rows: Tensor, world: World) -> "FeatureSpace":
        """The space whose whitening is that of the training images. All processes must call it.

        Args:
            rows: (n, d) of the level, those of this process.
        """
        return replace(self, whitening=Whitening.fit(rows, world)) if self.whitened else self

    def __call__(self, rows: Tensor) -> Tensor:
        """Unit rows (n, d) of the level -> features (n, d).

        Raises:
            ValueError: the whitening is not fitted yet.
        """
        if not self.whitened:
            return rows
        if self.whitening is None:
            raise ValueError("features are to be whitened, and no training features were seen")
        return self.whitening(rows)


PLAIN = FeatureSpace()
"""The network's output as it is: what the loss, the memory bank and the published protocol look at."""

"""The data sets, and how their images become batches."""

from datasets.image_set import Split
from datasets.registry import load

__all__ = ["Split", "load"]

"""The data sets, and how their images become batches."""

from datasets.registry import load
from datasets.split import Split

__all__ = ["Split", "load"]

"""The data sets, and how their images become batches."""

from datasets.registry import load

__all__ = ["load"]

"""`--compare`: sessions side by side, from their text files alone, so that it answers at once. No PyTorch here."""

from lib.report.comparison.compare import compare

__all__ = ["compare"]

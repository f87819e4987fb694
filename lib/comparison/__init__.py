"""`--compare`: sessions side by side, from their text files alone, so that it answers at once. No PyTorch here."""

from lib.comparison.compare import compare

__all__ = ["compare"]

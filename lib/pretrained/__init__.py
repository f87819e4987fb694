"""Weights from elsewhere: reading files of several kinds, and taking over what fits."""

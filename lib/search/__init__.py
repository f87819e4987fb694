"""Nearest rows by inner product, exact and approximate, on one or several processes."""

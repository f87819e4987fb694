"""Nearest neighbours by inner product: exact, approximate, and merged over processes."""

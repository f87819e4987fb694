"""Weights of any origin: reading the file, loading what fits the network, and filling the memory bank."""

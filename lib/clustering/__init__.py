"""Clusters of features, and their number. Nothing here uses labels."""

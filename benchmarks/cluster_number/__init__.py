"""Criteria for the number of clusters, against features whose number of classes is known."""

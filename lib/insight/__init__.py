"""What can be seen of a run without labels: entropies, neighbours, clusters, and pictures of them."""

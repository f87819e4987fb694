"""Evaluation of networks: kNN and linear classifiers, clusters, and bank statistics. Training never sees labels."""

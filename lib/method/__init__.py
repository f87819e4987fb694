"""Anchor neighbourhood discovery, equation by equation.

Huang, Dong, Gong and Zhu, "Unsupervised Deep Learning by Neighbourhood Discovery", ICML 2019 (arXiv 1904.11567).

==========================  ==============================  =============================================
equation                    what                            where
==========================  ==============================  =============================================
1                           neighbourhood of an anchor      discovery.nearest_neighbours
2                           probability p_ij                objective.log_probabilities
3                           loss of an anchor               objective.neighbourhood_log_likelihood
4                           how many anchors in round r     discovery.anchor_count
5                           entropy of an image             discovery.similarity_entropy
6                           which images become anchors     discovery.select_anchors
7                           loss of a batch                 objective.and_loss
8                           update of the memory bank       memory_bank.MemoryBank.update
==========================  ==============================  =============================================

Letters used for shapes: B images in a batch, N training images (rows of the bank), D feature length,
K neighbours of an anchor (itself not counted), A anchors of a round, Q queries, C classes.
"""

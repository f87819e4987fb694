"""Anchor neighbourhood discovery, equation by equation.

Huang, Dong, Gong and Zhu, "Unsupervised Deep Learning by Neighbourhood Discovery", ICML 2019 (arXiv 1904.11567).

========  ===================================================  =======================================================
equation  what                                                 where
========  ===================================================  =======================================================
1         neighbourhood of an anchor                           tiled_discovery.neighbours_from_best_tiles
2         probability p_ij, loss of an instance                objective.sum_over_bank, objective.logits_within_set
3, 4      loss of an anchor; probability of its neighbourhood  objective.neighbourhood_log_likelihood
5         entropy                                              tiled_discovery.entropies_and_best_tiles
5         choice of the anchors by their entropy               discovery.select_anchors
6         share of anchors in round r                          discovery.anchor_count
7         loss of a batch                                      objective.and_loss
8         update of the bank                                   memory_bank.MemoryBank.update
9 to 11   gradients                                            objective.and_loss
========  ===================================================  =======================================================

Letters used for shapes: B images in a batch, N training images (rows of the bank), D feature length,
K neighbours of an anchor (itself not counted), A anchors of a round, Q queries, C classes.
"""

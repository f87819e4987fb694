"""The method in float64 NumPy and plain loops: slow, obvious, and independent of lib/."""

import math

import numpy as np
import torch


def softmax_loss(features, memory, members, tau):
    """Equation 7 from the whole B x N log-softmax in PyTorch, whose gradient autograd takes."""
    absent = members < 0
    log_p = torch.log_softmax(features @ memory.t() / tau, dim=1)
    in_set = log_p.gather(1, members.masked_fill(absent, 0)).masked_fill(absent, -math.inf)
    return -torch.logsumexp(in_set, dim=1).mean()


def probabilities(x, memory, tau):
    """p_ij for one feature x (D,), all j: (N,)."""
    logits = np.array([float(np.dot(x, row)) / tau for row in memory])
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def loss(features, memory, sets, tau):
    """Mean over the batch of -log of the total probability of each image's set."""
    terms = []
    for x, members in zip(features, sets):
        logits = np.array([float(np.dot(x, row)) / tau for row in memory])
        top = logits.max()
        log_all = top + math.log(np.exp(logits - top).sum())
        inside = logits[list(members)]
        top = inside.max()
        terms.append(log_all - (top + math.log(np.exp(inside - top).sum())))
    return float(np.mean(terms))


def loss_gradient(features, memory, sets, tau):
    """d loss / d features, (B, D): (mean row under p minus mean row under p within the set) / tau / B."""
    gradient = np.zeros_like(features)
    for i, (x, members) in enumerate(zip(features, sets)):
        p = probabilities(x, memory, tau)
        members = list(members)
        q = probabilities(x, memory[members], tau)
        gradient[i] = (p @ memory - q @ memory[members]) / tau / len(features)
    return gradient


def bank_update(memory, indices, features, eta):
    memory = memory.copy()
    for i, x in zip(indices, features):
        row = eta * memory[i] + (1 - eta) * x
        memory[i] = row / math.sqrt((row**2).sum())
    return memory


def entropies(memory, tau):
    result = []
    for row in memory:
        p = probabilities(row, memory, tau)
        result.append(-sum(value * math.log(value) for value in p if value > 0))
    return np.array(result)


def anchors(entropy, count):
    return sorted(range(len(entropy)), key=lambda i: (entropy[i], i))[:count]


def neighbours(memory, anchor, k):
    others = [j for j in range(len(memory)) if j != anchor]
    return sorted(others, key=lambda j: (-float(np.dot(memory[anchor], memory[j])), j))[:k]


def consistency(anchor_list, neighbour_lists, labels):
    pairs = [labels[a] == labels[b] for a, row in zip(anchor_list, neighbour_lists) for b in row]
    return sum(pairs) / len(pairs)


def knn_ranking(query, database, labels, classes, k, sigma):
    """Classes with at least one vote, best first; ties go to the lower class."""
    order = sorted(range(len(database)), key=lambda j: (-float(np.dot(query, database[j])), j))[:k]
    votes = [0.0] * classes
    for j in order:
        votes[labels[j]] += math.exp(float(np.dot(query, database[j])) / sigma)
    return sorted((c for c in range(classes) if votes[c] > 0), key=lambda c: (-votes[c], c))


def knn_accuracy(queries, query_labels, database, labels, classes, k, sigma):
    top1 = top5 = 0
    for query, label in zip(queries, query_labels):
        ranking = knn_ranking(query, database, labels, classes, k, sigma)
        top1 += label in ranking[:1]
        top5 += label in ranking[:5]
    return top1 / len(queries), top5 / len(queries)

"""Statistics of the memory bank after an epoch: entropy, neighbours and clusters of sampled rows; effective rank."""

from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from torch import Tensor

from lib.distributed.world import Shard, World
from lib.method.memory_bank import MemoryBank
from lib.method.neighbourhoods import Neighbourhoods
from lib.method.objective import ABSENT
from lib.method.tiled_discovery import Grid, anchor_panels
from lib.search.exact import check_k, inner_products, merge_nearest

_TILE_ELEMENTS = 2**22
_RANK_EPSILON = 1e-7


@dataclass(frozen=True)
class BankStatistics:
    """Statistics of sampled rows. All tensors are on the device of the bank, the same in every process.

    Attributes:
        rows: (S,) int64, the sampled rows, ascending.
        entropy: (S,) float32, equation 5, in nats.
        nearest: (S,) int64, the most similar other row; the lowest of equals.
        cosine: (S,) float32, the similarity to that row.
        features: (S, D) float32, the rows of the bank.
    """

    rows: Tensor
    entropy: Tensor
    nearest: Tensor
    cosine: Tensor
    features: Tensor

    def kept(self, before: Optional[Tensor]) -> Optional[float]:
        """Share of the rows whose nearest row is the one in `before`, (S,); None without it."""
        if before is None or len(before) != len(self.nearest):
            return None
        return (before.to(self.nearest.device) == self.nearest).double().mean().item()


@torch.no_grad()
def bank_statistics(
    memory: Tensor, rows: Tensor, temperature: float, shard: Optional[Shard] = None, memory_budget: int = 2**28
) -> BankStatistics:
    """Compute the statistics of sampled rows, from S x N products, one tile at a time.

    Args:
        memory: (N, D) bank rows of unit length; with several processes those that `shard` names.
        rows: (S,) int64, ascending, the same in every process.
        temperature: tau.
        shard: which rows `memory` is; None: all of them.
        memory_budget: bytes for the rows that are gathered at a time.

    Raises:
        ValueError: the bank has a single row.
    """
    shard = Shard.whole(memory) if shard is None else shard
    rows = rows.to(memory.device)
    check_k(1, shard.count, rows)
    entropy, cosine = memory.new_empty(len(rows)), memory.new_empty(len(rows))
    nearest, features = torch.empty_like(rows), memory.new_empty(len(rows), memory.shape[1])
    tile = max(1, _TILE_ELEMENTS * shard.world.size // shard.count)  # the same chunks in every process
    for places, numbers, queries in anchor_panels(memory, rows, 1, Grid.within(memory_budget, memory), shard):
        features[places] = queries
        for chunk in torch.arange(len(places), device=memory.device).split(tile):
            here = places[chunk]
            similarities = inner_products(queries[chunk], memory)  # (T, n)
            entropy[here] = _entropy(similarities, temperature, shard)
            cosine[here], nearest[here] = _nearest(similarities, numbers[chunk], shard)
    return BankStatistics(rows, entropy, nearest, cosine, features)


def _entropy(similarities: Tensor, temperature: float, shard: Shard) -> Tensor:
    """(T,) from the similarities (T, n) to this process's rows, by sums over all processes."""
    shift = similarities.new_full((len(similarities),), float("-inf"))
    if similarities.shape[1] > 0:
        shift = similarities.amax(dim=1)
    y = similarities.sub(shard.world.all_reduce_max(shift)[:, None]).div_(temperature)
    weights = y.exp()
    sums = torch.stack([weights.sum(dim=1), y.mul_(weights).sum(dim=1)]).double()
    total, weighted = shard.world.all_reduce_sum(sums)
    return (total.log() - weighted / total).clamp_(min=0.0).to(similarities.dtype)


def _nearest(similarities: Tensor, numbers: Tensor, shard: Shard) -> tuple[Tensor, Tensor]:
    """Similarity and row number of the most similar other image, (T,) both. Overwrites `similarities`."""
    own = numbers - shard.start
    here = torch.nonzero(~shard.outside(numbers)).flatten()
    similarities[here, own[here]] = float("-inf")
    best = similarities.new_full((len(numbers),), float("-inf"))
    index = torch.full_like(numbers, shard.count)
    if similarities.shape[1] > 0:
        best = similarities.amax(dim=1)
        columns = torch.arange(similarities.shape[1], device=numbers.device)
        # the first of equals, which a maximum does not promise: duplicate pictures are not rare
        index = columns.where(similarities == best[:, None], index[:, None]).amin(dim=1) + shard.start
    best, index = merge_nearest(best[:, None], index[:, None], shard.world)
    return best[:, 0], index[:, 0]


@torch.no_grad()
def effective_rank(rows: Tensor, world: World) -> float:
    """RankMe (Garrido et al. 2023, equation 1): exp(-sum_k p_k log p_k), p_k = s_k / sum_j s_j + 1e-7, of the singular
    values s of the features, which are not centred.

    It needs no labels. Features of one direction have rank 1, equally spread ones min(N, D).

    Args:
        rows: (n, D), those of this process; the N rows of all processes count, and all must call it.
    """
    gram = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for chunk in rows.split(max(1, _TILE_ELEMENTS // rows.shape[1])):
        exact = chunk.double()
        gram.addmm_(exact.t(), exact)
    count = world.all_reduce_sum(torch.tensor([float(len(rows))], dtype=torch.float64, device=rows.device))
    squares = torch.linalg.eigvalsh(world.all_reduce_sum(gram).cpu())  # ascending
    values = squares[-min(int(count), len(squares)) :].clamp_(min=0).sqrt_()
    p = values / values.sum() + _RANK_EPSILON
    return torch.exp(-(p * p.log()).sum()).item()


@dataclass(frozen=True)
class Diagnostics:
    """Diagnostics of the bank after an epoch. They need no labels.

    Attributes:
        values: by their names in metrics.jsonl. entropy, anchor_entropy: mean over all images and over the round's
            anchors, in nats. neighbours_kept: share of images whose nearest neighbour is that of the end of the round
            before. neighbour_cosine: mean cosine to the nearest neighbour. clusters: their sizes, after the last epoch
            of a round.
        statistics: of each sampled row.
        clusters: (S,) the cluster of each sampled row on the CPU, after the last epoch of a round. Only the first
            process has them.
        clustering: the clusters of the round that has ended, as its checkpoint keeps them (`Clusters.state`).
    """

    values: dict[str, Any]
    statistics: BankStatistics
    clusters: Optional[Tensor] = None
    clustering: dict[str, Any] = field(default_factory=dict)


def diagnose(
    bank: MemoryBank,
    neighbourhoods: Neighbourhoods,
    before: Optional[Tensor],
    rows: Tensor,
    temperature: float,
    seed: int,
    number: Optional[str] = None,
) -> Diagnostics:
    """Compute entropy, nearest neighbours and clusters of the sampled rows. All processes must call it.

    Args:
        neighbourhoods: of the round.
        before: (S,) the nearest neighbours at the end of the round before, or None.
        rows: (S,) the sampled rows, as `sample_rows` gives them.
        temperature: tau.
        seed: of the clusters.
        number: --num-clusters; None: the round has not ended, and no clusters are computed.
    """
    found = bank_statistics(bank.memory, rows, temperature, bank.shard)
    anchors = neighbourhoods.position[found.rows] != ABSENT
    values: dict[str, Any] = {
        "entropy": found.entropy.mean().item(),
        "anchor_entropy": found.entropy[anchors].mean().item() if anchors.any() else None,
        "neighbours_kept": found.kept(before),
        "neighbour_cosine": found.cosine.mean().item(),
        "clusters": None,
    }
    if number is None or not bank.shard.world.is_first:
        return Diagnostics(values, found)
    from lib.clustering.clusters import round_clusters  # scikit-learn takes a second to import

    features = found.features.cpu()
    clusters = round_clusters(features, len(bank), number, seed)
    if clusters is None:
        return Diagnostics(values, found)
    values["clusters"] = clusters.sizes(features)
    return Diagnostics(values, found, clusters.assign(features), clusters.state())

"""What the processes of test_distributed.py run; every job is a function of a world alone.

Each returns plain data or tensors. A job must give the same on every process, or what it gives is named `own`.
"""

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from datasets.image_set import UNLABELLED, ImageSet
from lib.distributed.world import Shard
from lib.evaluation import knn as evaluation
from lib.evaluation.bank_statistics import bank_statistics
from lib.evaluation.features import Features, FeatureSpace
from lib.evaluation.knn import weighted_knn
from lib.method.discovery import discover
from lib.method.memory_bank import GlobalBatch, MemoryBank
from lib.method.objective import and_loss
from lib.nn.embedder import Embedder, plain_copy
from lib.nn.sync_batch_norm import synchronise
from lib.search.approximate import ApproximateSearch, recall
from lib.search.exact import nearest, sample_rows
from models import build
from tests.helpers.rows import grid_rows, random_members, unit_rows


def exchanges(world):
    """Collectives: sums, maxima, and rows whose number differs between the processes."""
    rows = torch.arange(2.0 * world.rank).view(-1, 2) + 10 * world.rank  # the first process has none
    found = {
        "sum": world.all_reduce_sum(torch.tensor([1.0, world.rank])),
        "largest": world.all_reduce_max(torch.tensor([-float(world.rank), float("-inf")])),
        "rows": world.gather_rows(rows),
        "numbers": world.gather_rows(torch.full((1, 2), world.rank), [1] * world.size),
        "none": world.gather_rows(torch.empty(0, 3)),
        "counts": world.counts(2 * world.rank),
        "sent": world.broadcast(torch.tensor([float(world.rank)]), world.size - 1),
    }
    world.barrier()
    return found


def fetches(world):
    """Any range of rows, where P does not divide the number of rows or exceeds it."""
    found = {}
    for count in (1, 2, 11):
        shard, whole = Shard(world, count), torch.arange(3 * count).view(count, 3)
        own = whole[shard.start : shard.stop]
        for start in range(count + 1):
            for stop in range(start, count + 1):
                found[count, start, stop] = torch.equal(shard.fetch(own, start, stop), whole[start:stop])
    return found


BATCHES = [(23, 7, 2), (23, 1, 1), (2, 2, 0), (30, 4, 5)]  # N, B, K


def losses(world):
    """The loss, and the gradients averaged as DistributedDataParallel averages them."""
    found = {}
    for n, b, k in BATCHES:
        shard, own = Shard(world, n), world.rows(b)
        memory, members = unit_rows(n, 6, n), random_members(b, n, k, n)
        features = unit_rows(b, 6, n + 1)[own].requires_grad_()
        loss = and_loss(features, memory[shard.start : shard.stop], members[own], 0.1, 64, shard)
        (3 * loss).backward()
        found[n, b, k] = {"loss": loss.detach(), "gradient": world.gather_rows(features.grad / world.size)}
    return found


def banks(world):
    """Rows of the bank at the start, after some batches, and restored from a checkpoint."""
    found = {}
    for size in (2, 101):
        bank = MemoryBank(size, 5, 0.5, torch.Generator().manual_seed(7), world)
        found[size, "start"] = bank.shard.gather_to_first(bank.memory)
        for step in range(4):
            chosen = torch.randperm(size, generator=torch.Generator().manual_seed(step))[: 2 + step]
            own = world.rows(len(chosen))
            features = unit_rows(len(chosen), 5, step)[own].requires_grad_()
            batch = GlobalBatch.gather(features, chosen[own][:, None], world)
            loss = and_loss(features, bank.memory, batch.members, 0.1, shard=bank.shard, batch=batch)
            found[size, "loss", step] = loss.detach()
            bank.update(batch.indices, batch.features)
        found[size, "end"] = bank.shard.gather_to_first(bank.memory)
        other = MemoryBank(size, 5, 0.5, None, world)
        other.load_whole(unit_rows(size, 5, 3))
        found[size, "loaded"] = other.shard.gather_to_first(other.memory)
    # only the first process is given the whole
    return {key: value if world.is_first or "loss" in key else None for key, value in found.items()}


def _network(kind):
    torch.manual_seed(0)
    if kind == "images":
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 2), nn.BatchNorm2d(2))
        nn.init.uniform_(network[1].weight)
        nn.init.uniform_(network[1].bias)
        return network.double(), 100 + torch.randn(7, 3, 6, 6).double()
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=None)), torch.randn(4, 3)


def batch_norms(world):
    """Outputs, gradients and running statistics; of 2 images some processes have none."""
    found = {}
    for kind in ("images", "rows"):
        for count in (7, 4, 2):
            network, images = _network(kind)
            keys = list(network.state_dict())
            network, images = synchronise(network, world), images[:count]
            own = world.rows(len(images))
            upstream = torch.randn(len(images), generator=torch.Generator().manual_seed(1))
            for _ in range(2):
                local = images[own].clone().requires_grad_()
                network.zero_grad()
                output = network(local)
                weights = upstream[own].view(-1, *[1] * (output.dim() - 1))
                (output.square() * weights).sum().backward()
            gradients = [world.all_reduce_sum(p.grad.clone()) for p in network.parameters()]
            plain = plain_copy(network).eval()
            found[kind, count] = {
                "output": world.gather_rows(output.detach()),
                "gradient": world.gather_rows(local.grad),
                "parameters": gradients,
                "state": dict(network.state_dict()),
                "same keys": list(network.state_dict()) == keys == list(plain.state_dict()),
                "evaluated": network.eval()(images).detach(),
                "plain": plain(images).detach(),
            }
    return found


def banks_to_discover():
    """name -> (memory, tau)."""
    duplicates = unit_rows(157, 16, 0)
    duplicates[40:60] = duplicates[3]
    duplicates[100:103] = duplicates[99]
    return {
        "duplicates": (duplicates, 0.1),
        "one row": (unit_rows(1, 16, 0).repeat(50, 1), 0.1),
        "grid": (grid_rows(61, 3, 0), 1.0),
        "lengths": (unit_rows(45, 5, 1) * torch.linspace(0.1, 5, 45)[:, None], 0.1),
        "few": (unit_rows(5, 4, 2), 0.1),
    }


DISCOVERIES = [(1, "auto", 2**30), (1, "torch", 2**11), (3, "auto", 2**12), (3, "faiss", 2**11), (12, "auto", 2**12)]


def discoveries(world):
    """Whole rounds: k, backend and memory budget of each in `DISCOVERIES`."""
    found = {}
    for name, (memory, temperature) in banks_to_discover().items():
        shard = Shard(world, len(memory))
        own = memory[shard.start : shard.stop]
        for k, backend, budget in DISCOVERIES:
            if k < len(memory):
                labels = torch.arange(len(memory)) % 3
                result = discover(own, 3, 0.25, k, temperature, backend, labels, shard, budget)
                found[name, k, backend, budget] = dict(vars(result))
    return found


def searches(world):
    """kNN accuracy, and neighbours among ties."""
    found = {}
    database, labels = unit_rows(53, 4, 1), torch.arange(53) % 7
    queries = unit_rows(20, 4, 2)
    ties = grid_rows(40, 2, 5)
    for backend in ("faiss", "torch"):
        shard = Shard(world, 53)
        own = database[shard.start : shard.stop]
        for k in (1, 10, 200):
            accuracy = weighted_knn(queries, labels[:20], own, labels, 7, k, 0.1, backend, shard)
            found[backend, k] = (accuracy.top1, accuracy.top5)
        shard, numbers = Shard(world, 40), torch.tensor([3, 39, 0, 20])
        own = ties[shard.start : shard.stop]
        found[backend, "ties"] = nearest(ties[numbers], own, 9, numbers, backend, shard)
        found[backend, "all"] = nearest(ties[numbers], own, 39, numbers, backend, shard)
        shard = Shard(world, 2)
        found[backend, "two"] = nearest(ties[:3], ties[:2][shard.start : shard.stop], 2, None, backend, shard)
        found[backend, "no query"] = nearest(ties[:0], ties[:2][shard.start : shard.stop], 1, None, backend, shard)
    return found


def approximate(world):
    """Recall of the lists on clustered rows, where faiss has something to find, and on very few rows."""
    centres = unit_rows(40, 8, 0)
    memory = F.normalize(centres.repeat(25, 1) + 0.2 * unit_rows(1000, 8, 1), dim=1)
    shard = Shard(world, len(memory))
    own = memory[shard.start : shard.stop]
    numbers = torch.arange(0, 1000, 7)
    search = ApproximateSearch(own, shard)
    similarities, indices = search(memory[numbers], 3, numbers)
    again = ApproximateSearch(own, shard)(memory[numbers], 3, numbers)
    true, _ = nearest(memory[numbers], own, 3, numbers, "torch", shard)
    round_found = discover(own, 2, 0.25, 1, 0.1, "ivf", None, shard)
    few = ApproximateSearch(own[:1], Shard(world, world.size))(memory[:2], world.size)
    return {
        "recall": recall(similarities, true),
        "repeats": torch.equal(again[1], indices) and torch.equal(again[0], similarities),
        "itself": bool((indices == numbers[:, None]).any()),
        "exact similarities": bool(
            torch.allclose((memory[numbers][:, None] * memory[indices]).sum(dim=2), similarities, atol=1e-6)
        ),
        "recall of a round": round_found.recall,
        "few": few[1].sort(dim=1).values.tolist() == [list(range(world.size))] * 2,
    }


def sampled_statistics(world):
    """Bank statistics of some rows, with duplicates, and where some processes have no rows."""
    found = {}
    for name, (memory, temperature) in banks_to_discover().items():
        if len(memory) < 2 or name == "lengths":
            continue
        shard, rows = Shard(world, len(memory)), sample_rows(len(memory), 37)
        seen = bank_statistics(memory[shard.start : shard.stop], rows, temperature, shard, 2**12)
        found[name] = {"entropy": seen.entropy, "nearest": seen.nearest, "cosine": seen.cosine, "rows": seen.features}
    two = unit_rows(2, 4, 0)
    shard = Shard(world, 2)
    found["two"] = bank_statistics(two[shard.start : shard.stop], torch.arange(2), 0.1, shard).nearest
    return found


def leave_one_out(world):
    """Leave-one-out kNN with all images labelled and with few (a process may have none), of all and of a sample."""
    found, before = {}, evaluation.MOST_QUERIES
    for known, largest in ((53, 100), (53, 10), (20, 100), (3, 2)):
        labels = torch.randint(6, (53,), generator=torch.Generator().manual_seed(known)).numpy()
        labels[known:] = UNLABELLED
        images = ImageSet(np.zeros((53, 4, 4, 3), np.uint8), labels, tuple("abcdef"))
        pipeline, memory = SimpleNamespace(name="some", train=images, test=None), unit_rows(53, 6, 9)
        evaluation.MOST_QUERIES = largest
        protocol = evaluation.LeaveOneOutKNN(pipeline, world, "knn", 1, 5, 0.1, "auto")
        features = Features(None, pipeline, world, 6, memory[world.rows(53)])
        found[known, largest] = protocol.evaluate(features).scalars
    evaluation.MOST_QUERIES = before
    return found


def feature_spaces(world):
    """Whitened features of 23 training images, of 2 (a process may have none), and of 5 test images."""
    torch.manual_seed(0)
    embedder, images = Embedder(build("convnet", 6, "small", 8), world.device), torch.randn(28, 3, 8, 8)
    found = {}
    for count in (23, 2):

        def batches(first, count):
            rows = torch.arange(count)[world.rows(count)]
            return [(images[first + part], part) for part in rows.split(4) if len(part) > 0]

        pipeline = SimpleNamespace(
            train=range(count),
            test=range(5),
            train_batches_plain=lambda count=count: batches(0, count),
            test_batches=lambda: batches(23, 5),
        )
        for level in ("embedding", "backbone"):
            space = FeatureSpace(level, True)
            features = Features(embedder, pipeline, world, space.dim(embedder.network, 6), space=space)
            test = features.all_test
            found[count, level] = {"test": test, "train": world.gather_rows(features.train, world.shares(count))}
    return found


JOBS = [
    exchanges,
    fetches,
    losses,
    banks,
    batch_norms,
    discoveries,
    searches,
    approximate,
    sampled_statistics,
    leave_one_out,
    feature_spaces,
]


def all_jobs(world):
    """The result of each job, by its name."""
    return {job.__name__: job(world) for job in JOBS}

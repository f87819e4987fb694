"""Time loss and discovery over random unit rows, in one process or several; the first prints the seconds as JSON.

python3 -m benchmarks.shared_bank IMAGES BATCH        started by benchmarks/processes.py, alone or by torchrun
"""

import json
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch.nn import functional as F

from lib.distributed import process_group as group
from lib.distributed.process_info import ProcessInfo
from lib.distributed.world import Shard, World
from lib.method.discovery import discover
from lib.method.objective import and_loss
from lib.runtime.memory import keep_freed_memory

DIM = 128
LOSSES = 7
"""Repeats of the loss in a turn; discovery takes long enough to be timed once, without a warm-up."""


def main(images: int, batch: int) -> None:
    world = group.join("cpu", ProcessInfo.here())
    keep_freed_memory()
    shard = Shard(world, images)
    generator = torch.Generator().manual_seed(world.rank)
    memory = F.normalize(torch.randn(shard.stop - shard.start, DIM, generator=generator), dim=1)
    own = len(torch.arange(batch)[world.rows(batch)])
    features = F.normalize(torch.randn(own, DIM, generator=generator), dim=1).requires_grad_()
    members = torch.randint(images, (own, 2), generator=generator)

    def loss() -> None:
        and_loss(features, memory, members, 0.1, shard=shard).backward()

    found = {
        f"loss head, B = {batch}": _seconds(loss, LOSSES, world, warm_up=1),
        "discovery": _seconds(lambda: discover(memory, 4, 0.25, 1, 0.1, shard=shard), 1, world, warm_up=0),
    }
    if world.is_first:
        print(json.dumps(found))
    group.leave()


def _seconds(function: Callable[[], object], repeats: int, world: World, warm_up: int) -> float:
    """Median over the repeats, after `warm_up` calls; from when all processes are ready until all are done."""
    times = []
    for _ in range(warm_up + repeats):
        world.barrier()
        started = time.perf_counter()
        function()
        world.barrier()
        times.append(time.perf_counter() - started)
    return median(times[warm_up:])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

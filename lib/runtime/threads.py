"""`--threads`: how many cores there are, how many are free, and the number of threads that a process computes with."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

AUTO = "auto"
MARGIN = 0.3
"""Cores that other programs may take on a machine that still counts as quiet."""
SHORTEST = 0.3
"""Seconds that are looked at at least: the system counts processor time in hundredths."""


def cores(root: Path = Path("/"), mask: Optional[set[int]] = None) -> int:
    """Cores that this process may use: those of its affinity mask, no more than the quota of its cgroups, at least 1.

    Processors of one core count once: a second thread on it adds nothing to matrix products.

    Args:
        root: where the system's files are.
        mask: numbers of processors; None: the process's own.
    """
    siblings = set()
    for number in _mask() if mask is None else mask:
        topology = _read(root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        siblings.add(topology or str(number))
    return max(1, int(min([len(siblings), *_quotas(root)])))


def _mask() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quotas(root: Path) -> Iterator[float]:
    """The limits, in cores, of the process's cgroups and those above them, of version 1 and 2."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers.split(",")[0] if controllers else root / "sys/fs/cgroup"
        if controllers and (mount.parent / controllers).is_dir():
            mount = mount.parent / controllers
        parts = Path(path).parts[1:]
        for depth in range(len(parts) + 1):  # in a container the path may be that of the host
            group = mount.joinpath(*parts[:depth])
            if controllers:
                quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
            else:
                quota, _, period = (_read(group / "cpu.max") or "").partition(" ")
            if quota and period and quota.isdigit():  # "max" and -1: no limit
                yield int(quota) / int(period)


def _read(path: Path) -> Optional[str]:
    """The text of a file of the system, or None where there is no such file."""
    try:
        return path.read_text().strip()
    except OSError:
        return None


def wished(launched: bool) -> Optional[int]:
    """The number that the user set in OMP_NUM_THREADS, or None. torchrun sets 1 where nobody did."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if not first.isdigit() or int(first) < 1 or (launched and int(first) == 1):
        return None
    return int(first)


class OtherPrograms:
    """The processor time that other programs take on this process's processors, from now until it is asked for."""

    def __init__(self) -> None:
        self._began, self._own, self._all = time.monotonic(), _own_seconds(), _seconds_of_all()

    def cores(self) -> Optional[float]:
        """How many cores they keep busy on average; None where the system does not say."""
        time.sleep(max(0.0, SHORTEST - (time.monotonic() - self._began)))
        now, own, elapsed = _seconds_of_all(), _own_seconds(), time.monotonic() - self._began
        if now is None or self._all is None:
            return None
        return max(0.0, now - self._all - (own - self._own)) / elapsed


def is_busy(others: Optional[float], wanted: int) -> bool:
    """Whether other programs leave fewer than `wanted` processors free.

    Args:
        others: from `OtherPrograms.cores`.
    """
    return others is not None and len(_mask()) - others < wanted - MARGIN


def _own_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _seconds_of_all(root: Path = Path("/")) -> Optional[float]:
    """Processor time since the machine started on the process's processors, what a hypervisor took included."""
    lines = (_read(root / "proc/stat") or "").splitlines()
    ours = {f"cpu{number}" for number in _mask()}
    ticks = [list(map(int, line.split()[1:])) for line in lines if line.split()[:1] and line.split()[0] in ours]
    if not ticks:
        return None
    # user, nice, system, idle, waiting for disks, interrupts, soft interrupts, stolen; guests are in user
    busy = sum(sum(numbers[:3]) + sum(numbers[5:8]) for numbers in ticks)
    return busy / os.sysconf("SC_CLK_TCK")

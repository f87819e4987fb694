"""Cores of the machine, how busy other programs keep them, and the number of threads that the user requests."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

MARGIN = 0.3
"""Cores that other programs may use before the machine counts as busy."""

SHORTEST_MEASUREMENT = 0.3
"""Seconds of the shortest measurement: the system counts processor time in hundredths."""


def cores(root: Path = Path("/"), mask: Optional[set[int]] = None) -> int:
    """Cores that this process may use: of its affinity mask, limited by the quota of its cgroups, at least 1.

    Hyper-threads of a core count once: a second thread on it adds nothing to matrix products.

    Args:
        root: folder of /proc and /sys.
        mask: numbers of processors; None: the affinity mask of the process.
    """
    siblings = set()
    for number in _mask() if mask is None else mask:
        topology = read_system_file(root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        siblings.add(topology or str(number))
    return max(1, int(min([len(siblings), *_quotas(root)])))


def _mask() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def control_groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of the process's cgroups with a controller, such as `cpu`, and of the groups above them; and their
    version, 1 or 2."""
    for line in (read_system_file(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers.split(",")[0] if controllers else root / "sys/fs/cgroup"
        if controllers and (mount.parent / controllers).is_dir():
            mount = mount.parent / controllers
        parts = Path(path).parts[1:]
        for depth in range(len(parts) + 1):  # in a container the path may be the host's
            yield mount.joinpath(*parts[:depth]), 1 if controllers else 2


def _quotas(root: Path) -> Iterator[float]:
    """The limits, in cores, of the process's cgroups."""
    for group, version in control_groups(root, "cpu"):
        if version == 1:
            quota = read_system_file(group / "cpu.cfs_quota_us")
            period = read_system_file(group / "cpu.cfs_period_us")
        else:
            quota, _, period = (read_system_file(group / "cpu.max") or "").partition(" ")
        if quota and period and quota.isdigit():  # "max" and -1: no limit
            yield int(quota) / int(period)


def read_system_file(path: Path) -> Optional[str]:
    """The text of a system file, or None if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return None


def requested_threads(launched: bool) -> Optional[int]:
    """The number in OMP_NUM_THREADS, or None if the user did not set it: torchrun sets 1 by default."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if not first.isdigit() or int(first) < 1 or (launched and int(first) == 1):
        return None
    return int(first)


class OtherPrograms:
    """Measures how busy other programs keep this process's processors, from its creation to `cores()`."""

    def __init__(self) -> None:
        self._began, self._own, self._all = time.monotonic(), _own_seconds(), _seconds_of_all()

    def cores(self) -> Optional[float]:
        """Cores that other programs use on average; None if the system does not report it."""
        time.sleep(max(0.0, SHORTEST_MEASUREMENT - (time.monotonic() - self._began)))
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
    """Processor time since boot on this process's processors, including time stolen by a hypervisor."""
    lines = (read_system_file(root / "proc/stat") or "").splitlines()
    ours = {f"cpu{number}" for number in _mask()}
    ticks = [list(map(int, line.split()[1:])) for line in lines if line.split()[:1] and line.split()[0] in ours]
    if not ticks:
        return None
    # user, nice, system, idle, waiting for disks, interrupts, soft interrupts, stolen; guests are in user
    busy = sum(sum(numbers[:3]) + sum(numbers[5:8]) for numbers in ticks)
    return busy / os.sysconf("SC_CLK_TCK")

"""--threads: the number of cores, how many are free, timing, and that timing changes nothing."""

import math

import pytest
import torch

import models
from lib.commands.call import _OF_A_MACHINE
from lib.config import Options, collect
from lib.distributed.process_info import ProcessInfo
from lib.distributed.world import World
from lib.errors import UserError
from lib.logger import console
from lib.method.memory_bank import MemoryBank
from lib.method.neighbourhoods import Neighbourhoods
from lib.nn.embedder import Embedder
from lib.runtime import threads
from lib.runtime.memory import physical_memory
from lib.training import planning
from lib.training.optim import build_optimizer
from lib.training.state import TrainingState
from lib.training.step import Step

ALONE, PAIR = ProcessInfo(), ProcessInfo(1, 2, 1, 2, launched=True)
V2, V1 = "0::/a/b", "4:cpu,cpuacct:/a/b\n2:memory:/m\n0::/"


def write(root, cgroup, limits):
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(cgroup + "\n")
    for path, text in limits.items():
        (root / "sys/fs/cgroup" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / path).write_text(text + "\n")


@pytest.mark.parametrize(("cgroup", "limits", "expected"), [
    (V2, {}, 8),
    (V2, {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000", "cpu.max": "500000 100000"}, 3),
    (V2, {"cpu.max": "250000 100000"}, 2),  # a container sees its own group at the top
    (V2, {"a/b/cpu.max": "50000 100000"}, 1),
    (V1, {"cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1", "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000"}, 8),
    (V1, {"cpu,cpuacct/a/cpu.cfs_quota_us": "400000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 4),
    (V1, {"cpu/cpu.cfs_quota_us": "600000", "cpu/cpu.cfs_period_us": "100000"}, 6),
])  # fmt: skip
def test_cores_are_those_of_the_mask_within_every_quota(tmp_path, cgroup, limits, expected):
    write(tmp_path, cgroup, limits)
    assert threads.cores(tmp_path, set(range(8))) == expected


def test_two_processors_of_a_core_count_once(tmp_path):
    for number in range(8):
        path = tmp_path / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"
        path.parent.mkdir(parents=True)
        path.write_text(f"{number % 4},{number % 4 + 4}\n")
    assert threads.cores(tmp_path, set(range(8))) == 4
    assert threads.cores(tmp_path, {1, 5, 2}) == 2


def test_processor_time_of_others_excludes_ours(monkeypatch):
    now = {"all": 100.0, "own": 10.0, "time": 50.0}
    monkeypatch.setattr(threads, "_seconds_of_all", lambda: now["all"])
    monkeypatch.setattr(threads, "_own_seconds", lambda: now["own"])
    monkeypatch.setattr(threads.time, "monotonic", lambda: now["time"])
    watch = threads.OtherPrograms()
    now.update(all=106.0, own=12.0, time=54.0)
    assert watch.cores() == pytest.approx((6 - 2) / 4)


def test_steal_time_counts_and_io_wait_does_not(tmp_path, monkeypatch):
    (tmp_path / "proc").mkdir()
    stat = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 10 20 5000 700 3 4 50 7 0\ncpu1 1 1 1 1 1 1 1 1 1 1\nintr 5\n"
    (tmp_path / "proc" / "stat").write_text(stat)
    monkeypatch.setattr(threads, "_mask", lambda: {0})
    monkeypatch.setattr(threads.os, "sysconf", lambda name: 100)
    assert threads._seconds_of_all(tmp_path) == pytest.approx((100 + 10 + 20 + 3 + 4 + 50) / 100)


def test_a_machine_is_busy_where_too_few_processors_are_free(monkeypatch):
    monkeypatch.setattr(threads, "_mask", lambda: set(range(8)))
    assert not threads.is_busy(None, 8)
    assert not threads.is_busy(0.2, 8)
    assert threads.is_busy(1.0, 8)
    assert not threads.is_busy(5.0, 2)  # a quota of two cores of eight


@pytest.mark.parametrize(("value", "launched", "expected"), [
    (None, False, None), ("3", False, 3), ("4,2", False, 4), ("x", False, None), ("0", False, None),
    ("1", False, 1), ("1", True, None), ("2", True, 2),
])  # fmt: skip
def test_omp_num_threads_counts_unless_torchrun_set_it(monkeypatch, value, launched, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads.requested_threads(launched) == expected


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "many", "1000"])
def test_other_values_are_refused(value):
    with pytest.raises(UserError, match="--threads on the command line: expected auto, or a whole number from 1 to"):
        collect(["--threads", value])


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(planning, "cores", lambda: 8)
    set_to = []
    monkeypatch.setattr(planning.torch, "set_num_threads", set_to.append)
    return set_to


def two(rank=0):
    return World(rank, 2, torch.device("cpu"))


def test_threads_without_timing(eight_cores, monkeypatch):
    alone, auto = World.alone(), collect([])
    assert planning.set_threads(auto, alone, ALONE) == (8, "all cores", "")
    assert planning.set_threads(auto, two(), PAIR)[:2] == (4, "a share of 8 cores")
    asked = planning.set_threads(collect(["--threads", "3"]), alone, ALONE)
    assert asked == (3, "--threads, command line", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert planning.set_threads(auto, alone, ALONE)[:2] == (5, "OMP_NUM_THREADS")
    assert eight_cores == [8, 4, 3, 5]


def test_a_checkpoints_number_stays_and_more_than_the_cores_is_warned_of(eight_cores):
    settings = collect(["--resume", "x"], {"threads": "12"})
    kept = planning.set_threads(settings, World.alone(), ALONE)
    assert kept[:2] == (12, "--threads, checkpoint")
    assert kept.warning.startswith("12 threads share 8 cores, which is slow; --threads auto")
    # processes that share a machine would otherwise take the number of one that had it alone
    assert planning.set_threads(settings, two(), PAIR)[0] == 4
    few = planning.set_threads(collect(["--resume", "x"], {"threads": "1"}), two(), PAIR)
    assert few == (1, "--threads, checkpoint", "")
    assert "threads" in _OF_A_MACHINE


def test_the_fastest_number_is_chosen_and_timing_stops_after_a_slow_one(monkeypatch):
    clock, number, taken = [0.0], [0], []
    monkeypatch.setattr(planning.torch, "set_num_threads", lambda n: number.__setitem__(0, n))

    def step(limit):
        taken.append(number[0])
        clock[0] += min(costs[number[0]], limit)
        if costs[number[0]] > limit:
            raise planning.TooSlowError

    assert planning.numbers_to_try(8) == [1, 4, 8]
    assert planning.numbers_to_try(2) == [1, 2]
    costs = {1: 8.0, 4: 2.5, 8: 4.0}
    assert planning.step_seconds(step, [1, 4, 8], lambda: clock[0]) == costs
    taken.clear()
    costs = {1: 1.0, 4: 40.0, 8: 80.0}
    assert planning.step_seconds(step, [1, 4, 8], lambda: clock[0]) == {1: 1.0, 4: math.inf}
    assert taken == [1] * 4 + [4]
    assert clock[0] == 4 * 8 + 4 * 2.5 + 4 * 4 + 4 * 1 + 4


def test_a_slow_step_is_aborted_between_two_layers():
    network = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    with planning.time_limit(network) as until:
        until(60.0)
        assert network(1) == 1
        until(-1.0)
        with pytest.raises(planning.TooSlowError):
            network(1)
    assert network(1) == 1


@pytest.mark.parametrize(("network", "optimizer"), [("resnet18", "sgd"), ("alexnet", "adam")])  # alexnet has dropout
@pytest.mark.parametrize("trained", [False, True])
def test_timed_steps_change_nothing(network, optimizer, trained):
    torch.manual_seed(0)
    options = Options(optimizer=optimizer, low_dim=8)
    embedder = Embedder(models.build(network, 8, "small", 32), torch.device("cpu"))
    bank = MemoryBank(6, 8, 0.5)
    optimizer = build_optimizer(options, embedder.network.parameters())
    state = TrainingState(embedder, optimizer, bank, Neighbourhoods.none(6, 1, bank.memory.device))
    step = Step(embedder, bank, state.optimizer, 0.1)
    rows = torch.tensor([4, 1, 0])
    images, members = torch.randn(3, 3, 32, 32), state.neighbourhoods.members(rows)
    if trained:
        step(images, members, 3)

    def all_of_it():
        tensors = [*embedder.network.state_dict().values(), bank.memory]
        tensors += [value for kept in state.optimizer.state.values() for value in kept.values()]
        return [torch.as_tensor(tensor).clone() for tensor in tensors] + [torch.get_rng_state()]

    before = all_of_it()
    with planning.restoring_state(state, rows):
        for _ in range(2):
            step(images, members, 3)
        assert any((one != other).any() for one, other in zip(before, all_of_it()))
    after = all_of_it()
    assert len(after) == len(before)
    assert all(torch.equal(one, other) for one, other in zip(before, after))
    assert all(parameter.grad is None for parameter in embedder.network.parameters())


def test_faiss_computes_with_pytorchs_number():
    import faiss

    before = torch.get_num_threads()
    try:
        for number in (2, 1):
            torch.set_num_threads(number)
            assert faiss.omp_get_max_threads() == number
    finally:
        torch.set_num_threads(before)


def test_a_rate_below_a_third_is_reported_once():
    now = [0.0]
    watch = console.RateWatch(lambda: now[0])

    def train(images, seconds):
        now[0] += seconds
        return watch.update(images)

    assert train(3000, 10) is None
    assert train(1010, 10) is None  # a little more than a third
    now[0] += 1000  # an evaluation
    watch.resume()
    assert train(3000, 10) is None
    assert train(400, 6) is None  # too short to tell
    assert train(200, 6) == (50.0, 300.0)
    assert train(10, 10) is None


@pytest.mark.parametrize(("cgroup", "limits", "expected"), [
    (V2, {"a/memory.max": "4096", "a/b/memory.max": "max"}, 4096),
    (V1, {"memory/m/memory.limit_in_bytes": "8192"}, 8192),
    (V2, {"memory.max": str(2**62)}, None),
])  # fmt: skip
def test_main_memory_is_that_of_the_machine_within_every_limit(tmp_path, cgroup, limits, expected):
    whole = physical_memory(tmp_path)
    write(tmp_path, cgroup, limits)
    assert physical_memory(tmp_path) == (expected or whole)

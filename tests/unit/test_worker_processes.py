"""DataLoader workers on a machine short of shared memory, open files, processes or time."""

import errno
import logging
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.popen_fork import Popen

import numpy as np
import pytest
import torch

from datasets.files.parallel import map_in_workers
from datasets.image_set import ImageSet
from datasets.loaders import worker_processes
from datasets.loaders.worker_processes import ON_LINUX, SharedBatches, WorkerBatch, allowed_workers
from datasets.loaders.workers import WorkerLoader
from lib.errors import UserError
from lib.logger.console import LOGGER
from lib.runtime import stop_signals
from lib.runtime.stop_signals import StopSignals

pytestmark = pytest.mark.skipif(not ON_LINUX, reason="workers are forked on Linux alone")


def as_tensor(image):
    return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)


def images_of(count, side=4):
    return ImageSet(np.random.default_rng(3).integers(0, 256, (count, side, side, 3), np.uint8))


def loader_of(images, workers_num=2, size=4, transform=as_tensor, **options):
    return WorkerLoader(images, transform, 3, workers_num, 0, torch.device("cpu"), size, **options)


def exactly(images, batches):
    """Whether batches of three hold these images in order."""
    found = list(batches)
    assert torch.equal(torch.cat([rows for _, rows in found]), torch.arange(len(images)))
    expected = torch.from_numpy(images.pixels.astype(np.float32)).permute(0, 3, 1, 2)
    assert torch.equal(torch.cat([pixels for pixels, _ in found]), expected)


@pytest.fixture(autouse=True)
def nothing_said():
    worker_processes._warned.clear()


@pytest.fixture
def warnings_of(caplog):
    logging.getLogger(LOGGER).propagate = True
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records if record.name == LOGGER]


@pytest.mark.parametrize(("size", "shared"), [(4, True), (2, False), (0, False)])
@pytest.mark.parametrize("prefetch", [1, 2])
def test_batches_arrive_whole_through_memory_and_through_a_pipe(size, shared, prefetch):
    """40 images in batches of three: the places are used several times, and the last batch is smaller."""
    images = images_of(40)
    loader = loader_of(images, size=size, prefetch=prefetch)
    for salt in range(2):  # the second time by the workers that stayed
        exactly(images, loader.batches(torch.arange(40), (salt,)))
    memory = loader._idle.collate_fn.shared
    assert (memory is not None) == (size > 0)
    if memory is not None:
        assert (memory._numbers >= 3 * 3 * 4 * 4) == shared
    loader.close()


def test_a_batch_that_is_still_referenced_is_not_overwritten():
    images = images_of(30)
    exactly(images, list(loader_of(images, workers_num=1).batches(torch.arange(30), ())))


def test_a_larger_batch_of_a_later_epoch_still_arrives():
    images = images_of(12)
    loader = loader_of(images)
    exactly(images, loader.batches(torch.arange(12), ()))
    exactly(images, loader.batches([torch.arange(12)], ()))


def test_shared_memory_is_released_between_epochs():
    shared = SharedBatches(1, 1, 1 << 20)
    before = resident()
    for place in range(2):
        shared.at(place, (1 << 20,)).fill_(1.0)
    assert resident() - before > 7 << 20  # 2 x 4 MiB
    shared.clear()
    assert resident() - before < 1 << 20


def resident():
    """Bytes of shared memory that this process holds."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssShmem"))


def test_only_numbers_pass_through_the_queue():
    """A tensor would go by torch's shared memory again."""
    batch = WorkerBatch([torch.ones(3, 2, 2)] * 2, (5, 6), None)
    assert not any(isinstance(value, torch.Tensor) for value in vars(batch).values())
    pixels, rows = batch.receive()
    assert rows.tolist() == [5, 6]
    assert torch.equal(pixels, torch.ones(2, 3, 2, 2))


def test_the_thread_that_pins_takes_a_batch_by_its_own_method(monkeypatch):
    """torch looks for pin_memory in whatever a batch is; without a GPU a copy stands for it."""
    from torch.utils.data._utils.pin_memory import pin_memory

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *device: tensor + 1)
    pixels, rows = pin_memory(WorkerBatch([torch.ones(3, 2, 2)] * 2, (5, 6), None))
    assert torch.equal(pixels, torch.full((2, 3, 2, 2), 2.0))
    assert rows.tolist() == [6, 7]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "/dev/shm (Read-only file system); it must exist and be writable"),
        (errno.ENOSPC, "/dev/shm (No space left on device)"),
        (errno.ENOENT, "/dev/shm (No such file or directory)"),
        (errno.EMFILE, "too few files may be open (Too many open files); raise the limit (ulimit -n)"),
        (errno.EAGAIN, "too few processes may run (Resource temporarily unavailable)"),
        (errno.ENOMEM, "memory is short (Cannot allocate memory); lower --workers-num"),
    ],
)
def test_without_semaphores_the_main_process_loads(monkeypatch, warnings_of, number, words):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    images = images_of(10)
    loader = loader_of(images)
    for salt in range(2):
        exactly(images, loader.batches(torch.arange(10), (salt,)))
    [line] = warnings_of()
    assert line.startswith("workers   none: this process loads the images, which is slower, since ")
    assert words in line
    assert list(map_in_workers(abs, range(-100, 0), 2, "--shrink")) == list(range(100, 0, -1))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(OSError, (errno.EAGAIN, "Resource temporarily unavailable")), (RuntimeError, ("can't start new thread",))],
)
def test_started_workers_end_when_another_cannot_start(monkeypatch, warnings_of, capfd, kind, reason):
    launch, started = Popen._launch, []

    def second_fails(self, process):
        if started:
            raise kind(*reason)
        launch(self, process)
        started.append(self.pid)

    monkeypatch.setattr(Popen, "_launch", second_fails)
    images = images_of(10)
    exactly(images, loader_of(images).batches(torch.arange(10), ()))
    assert len(started) == 1
    assert not multiprocessing.active_children()
    assert "too few processes may run" in warnings_of()[0]
    assert capfd.readouterr().err == ""


def refuse(folder):
    raise FileNotFoundError(errno.ENOENT, "No such file or directory", folder)


def test_the_limit_of_open_files_decides_how_many_start(monkeypatch, warnings_of):
    limits = []
    monkeypatch.setattr("os.listdir", lambda folder: range(16) if folder == "/dev/fd" else None)
    monkeypatch.setattr("resource.setrlimit", lambda which, new: limits.append(new))

    def allow(soft, hard):
        monkeypatch.setattr("resource.getrlimit", lambda which: (soft, hard))

    allow(1024, 4096)
    assert allowed_workers(4) == 4
    allow(-1, -1)
    assert allowed_workers(4) == 4
    assert limits == []
    allow(40, 4096)  # 16 are open, 24 are left to the run, 4 for each worker
    assert allowed_workers(4) == 4
    assert limits == [(56, 4096)]
    allow(40, 49)
    assert allowed_workers(4) == 2
    allow(32, 32)
    assert allowed_workers(4) == 0
    assert allowed_workers(0) == 0
    monkeypatch.setattr("os.listdir", refuse)
    assert allowed_workers(4) == 4
    assert warnings_of() == [
        "workers   2 of 4 start, since only 49 files may be open; for all of them: ulimit -n 56",
        "workers   none: this process loads the images, since only 32 files may be open; for all of them: ulimit -n 56",
    ]


def test_map_in_workers_gives_results_in_order_and_the_first_error():
    assert list(map_in_workers(abs, range(-100, 0), 2, "--shrink")) == list(range(100, 0, -1))
    results = map_in_workers(refuse_42, range(100), 2, "--shrink")
    assert [next(results) for _ in range(42)] == list(range(42))
    with pytest.raises(UserError, match="^no 42$"):
        next(results)
    results.close()
    assert not multiprocessing.active_children()


def refuse_42(number):
    if number == 42:
        raise UserError("no 42")
    return number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_that_waits_for_a_batch(monkeypatch, number):
    """The second worker is stopped, as by a disk that does not answer."""
    monkeypatch.setattr(stop_signals, "BATCH_TIMEOUT", 1.0)
    loader = loader_of(images_of(600))
    batches = loader.batches(torch.arange(600), ())
    next(batches)
    stopped = sorted(multiprocessing.active_children(), key=lambda child: child.pid)[1]
    os.kill(stopped.pid, signal.SIGSTOP)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), number))
    timer.start()
    started = time.monotonic()
    before = signal.getsignal(number), signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError, match=signal.Signals(number).name):  # noqa: SIM117
        with StopSignals(False, True, lambda: loader.waiting_since, lambda number: TimeoutError(number.name)) as stop:
            list(batches)
    timer.join()
    assert 1.0 < time.monotonic() - started < 5.0
    assert stop.requested == number
    assert not multiprocessing.active_children()
    assert (signal.getsignal(number), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    exactly(images_of(6), loader_of(images_of(6)).batches(torch.arange(6), ()))  # the next loader is not told of it


def test_a_signal_does_not_interrupt_a_run_whose_batches_arrive(monkeypatch):
    monkeypatch.setattr(stop_signals, "BATCH_TIMEOUT", 1.0)

    def slow(image):
        time.sleep(0.15)
        return as_tensor(image)

    images = images_of(24)
    loader = loader_of(images, workers_num=1, transform=slow)  # a batch takes 0.45 s, all 3.6 s
    with StopSignals(False, True, lambda: loader.waiting_since, lambda number: TimeoutError(number.name)) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        exactly(images, loader.batches(torch.arange(24), ()))
    assert stop.requested == signal.SIGTERM
    loader.close()

"""DataLoader workers that are killed, and how far they load ahead."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.image_set import ImageSet
from datasets.loaders.worker_processes import DeadWorkers, watch_workers
from datasets.loaders.workers import WorkerLoader
from lib.errors import RunError
from tests.helpers.runs import call, start, wait_for

CPU = torch.device("cpu")


class Slow:
    """A slow transform."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, image):
        time.sleep(self.seconds)
        return torch.zeros(3, 4, 4)


def loader_of(count, workers_num, seconds=0.0, **options):
    images = ImageSet(np.zeros((count, 4, 4, 3), np.uint8))
    return WorkerLoader(images, Slow(seconds), 2, workers_num, 0, CPU, **options)


def workers():
    return [child.pid for child in multiprocessing.active_children()]


def none_within(seconds):
    until = time.monotonic() + seconds
    while workers() and time.monotonic() < until:
        time.sleep(0.02)
    return not workers()


def test_a_killed_worker_is_a_run_error_of_one_line():
    assert none_within(5)
    batches = loader_of(4000, 2, 0.05).batches(range(4000), (0,))
    next(batches)
    os.kill(workers()[0], signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(RunError) as error:
        list(batches)
    assert time.monotonic() - started < 15
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("a DataLoader worker died: DataLoader worker (pid")
    assert "killed by signal: " in text
    assert "--workers-num" in text
    assert none_within(10)  # while the error is still being looked at


def test_a_worker_that_dies_between_epochs_is_an_error_at_the_next_batch():
    loader = loader_of(8, 1)
    list(loader.batches(range(8), (0,)))
    os.kill(workers()[0], signal.SIGKILL)
    assert none_within(5)
    time.sleep(0.1)
    with pytest.raises(RunError, match="a DataLoader worker died"):
        next(loader.batches(range(8), (1,)))
    assert len(list(loader.batches(range(8), (1,)))) == 4  # it is said once; new workers do the work
    loader.close()
    assert none_within(10)


def test_one_sigchld_handler_ignores_other_children():
    loader = loader_of(4, 1)
    list(loader.batches(range(4), (0,)))
    handler = signal.getsignal(signal.SIGCHLD)
    assert watch_workers() is handler
    subprocess.run([sys.executable, "-c", "raise SystemExit(3)"], check=False)
    assert handler.pop_error() is None
    assert len(list(loader.batches(range(4), (0,)))) == 2
    loader.close()


def test_only_torchs_worker_errors_are_translated():
    def torchs(number, frame):
        raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")

    def other(number, frame):
        raise RuntimeError("CUDA error: out of memory")

    listener = DeadWorkers(torchs)
    assert listener.pop_error() is None
    listener(signal.SIGCHLD, None)
    assert "DataLoader worker (pid 12) is killed by signal: Killed. If memory ran out" in str(listener.pop_error())
    assert listener.pop_error() is None
    polled = RuntimeError("DataLoader worker (pid(s) 12)\n exited unexpectedly")
    assert "(pid(s) 12) exited unexpectedly. If memory ran out" in str(listener.explain(polled))
    listener(signal.SIGCHLD, None)
    assert "killed by signal" in str(listener.explain(polled))
    for words in ("CUDA error", "Caught KeyError in DataLoader worker process 0.\nOriginal Traceback"):
        assert listener.explain(RuntimeError(words)) is None
    with pytest.raises(RuntimeError, match="CUDA"):
        DeadWorkers(other)(signal.SIGCHLD, None)


def test_a_programming_error_keeps_its_traceback():
    loader = loader_of(4, 1, "no number")
    with pytest.raises(TypeError):
        list(loader.batches(range(4), (0,)))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_run_whose_loader_is_killed_ends_with_one_line(tmp_path):
    """The whole command: a status of 1, one line, and no process left behind."""
    (tmp_path / "data" / "train").mkdir(parents=True)
    for number in range(40):
        Image.new("RGB", (70, 70 + number), (number, 0, 0)).save(tmp_path / "data" / "train" / f"{number}.png")
    arguments = ["--dataset", "imagefolder", "--data-root", str(tmp_path / "data"), "--size", "8", "--batch-size", "4"]
    arguments += ["--max-epoch", "100000", "--sess-dir", str(tmp_path / "s"), "--session", "x", "--workers-num", "2"]
    arguments += ["--network", "convnet", "--gpus", "cpu", "--precision", "fp32"]
    run = start(*arguments, stdout=subprocess.DEVNULL)
    try:
        wait_for((tmp_path / "s" / "x" / "metrics.jsonl").exists, run)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        assert len(children) == 2
        os.kill(int(children[1]), signal.SIGKILL)
        _, error = run.communicate(timeout=60)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 1
    assert error.count("\n") == 1, error
    assert error.startswith("error: a DataLoader worker died: ")
    assert "killed by signal" in error or "exited unexpectedly" in error
    until = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{child}") for child in children) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(os.path.exists(f"/proc/{child}") for child in children)


def test_a_signal_to_the_process_group_does_not_stop_the_workers():
    loader = loader_of(40, 2)
    batches = loader.batches(range(40), (0,))
    next(batches), next(batches)  # one of each
    ours = workers()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        stranger = f"import os; [os.kill(pid, {int(number)}) for pid in {ours}]"
        subprocess.run([sys.executable, "-c", stranger], check=True)
    assert len(list(batches)) == 18
    assert sorted(workers()) == sorted(ours)
    loader.close()
    assert none_within(10)


def test_a_worker_ends_at_its_parents_request():
    loader = loader_of(4000, 1, 0.05)
    batches = loader.batches(range(4000), (0,))
    next(batches)
    multiprocessing.active_children()[0].terminate()
    assert none_within(5)
    with pytest.raises(RunError, match="a DataLoader worker died"):
        list(batches)


@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_program_exits_while_a_loader_is_active(fresh):
    """The traceback keeps the loader alive until the interpreter exits, which waits for all child processes."""
    program = f"from {__name__} import loader_of\n"
    program += "batches = loader_of(40, 2).batches(range(40), (0,))\nnext(batches)\nraise SystemError('kept')\n"
    status, _, err = call(program=("-c", program), timeout=60, fresh=fresh)
    assert status == 1
    assert err.endswith("SystemError: kept\n")


@pytest.mark.parametrize("prefetch", [1, 3])
def test_prefetch_is_what_a_worker_loads_ahead(tmp_path, prefetch):
    class Noting(Slow):
        def __call__(self, image):
            with open(tmp_path / "made", "ab") as file:
                file.write(b".")
            return torch.zeros(3, 4, 4)

    images = ImageSet(np.zeros((40, 4, 4, 3), np.uint8))
    loader = WorkerLoader(images, Noting(0), 2, 1, 0, CPU, prefetch=prefetch)
    batches = loader.batches(range(40), (0,))
    next(batches)
    until = time.monotonic() + 10
    expected = 2 * (1 + prefetch)  # images of the batch that was asked for, and of those ahead of it
    while os.path.getsize(tmp_path / "made") < expected and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.2)
    assert os.path.getsize(tmp_path / "made") == expected
    batches.close()


def test_prefetch_has_no_effect_without_workers():
    assert len(list(loader_of(4, 0, prefetch=7).batches(range(4), (0,)))) == 2

"""For all tests: one thread in each process (pytest-xdist starts two), default signal handlers, and a finished run."""

import os
import signal
import sys
import threading

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported

if threading.current_thread() is threading.main_thread():
    # a background shell ignores SIGINT for its children, and main.py leaves ignored signals ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _threads_as_before():
    """Restore the number of threads, which main.main sets in this process."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def digits_session(tmp_path_factory):
    """The folder of a finished run on 60 digits, with report and TensorBoard; to be copied before it is changed."""
    import main

    base = tmp_path_factory.mktemp("digits")
    arguments = ["--cfgs", "configs/base.yaml", "configs/digits.yaml", "--network", "convnet", "--gpus", "cpu",
                 "--limit-train", "60", "--limit-test", "30", "--batch-size", "32", "--max-round", "3",
                 "--max-epoch", "2", "--tfb-projector", "25"]  # fmt: skip
    assert main.main([*arguments, "--sess-dir", str(base), "--session", "run"]) == 0
    return base / "run"

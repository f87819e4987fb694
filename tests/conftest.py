"""What all tests share: one thread a process, since two workers of pytest-xdist are at work, Ctrl-C as a terminal has
it, and a finished run."""

import os
import signal
import sys
import threading

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported

if threading.current_thread() is threading.main_thread():
    # a shell that runs the tests in the background has Ctrl-C ignored, and a run leaves ignored what was ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _threads_as_before():
    """main.py sets the number of threads of its process, which is that of the tests where they call it."""
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

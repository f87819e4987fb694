"""What all tests share: one thread a process, since two workers of pytest-xdist are at work, and no GPU but in its own
tests."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported

import pytest


@pytest.fixture(autouse=True)
def _threads_as_before():
    """main.py sets the number of threads of its process, which is that of the tests where they call it."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

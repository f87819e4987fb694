"""What all tests share: one thread a process, since two workers of pytest-xdist are at work, and no GPU but in its own
tests."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported

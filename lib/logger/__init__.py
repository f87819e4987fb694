"""Logging of a run: terminal and log file, progress bar, TensorBoard."""

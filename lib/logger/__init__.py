"""What a run reports while it goes: console and log file, metrics, progress bar, TensorBoard."""

"""What a run shows while it trains: terminal and log file, progress bar, TensorBoard."""

"""What a run leaves behind: its folder, log, metrics, TensorBoard files and checkpoints."""

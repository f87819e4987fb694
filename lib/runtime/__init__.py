"""The process and its machine: device, memory, threads, determinism, signals, installed packages."""

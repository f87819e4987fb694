"""How fast it is, against a plain version and against the limit of the machine: `python3 -m benchmarks`."""

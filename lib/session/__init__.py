"""The session: the folder of a run, its lock, and its records."""

"""Checkpoints: their schema, their files, which of them a session keeps, and resuming from one."""

"""Checkpoints: the file, which files a session keeps, and which one is resumed."""

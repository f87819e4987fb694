"""A finished network for use elsewhere: exported folders, kept features, and a model to call from Python."""

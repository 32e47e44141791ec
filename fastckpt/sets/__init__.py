"""Checkpoints that are several files: which belong together, and whether all of them are there and whole."""

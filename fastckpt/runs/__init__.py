"""A training run of one's own: its checkpoints in a directory, and which of them to go on from."""

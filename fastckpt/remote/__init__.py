"""Checkpoints that lie in an object store or on a web server: where, and what is asked of it. Without torch."""

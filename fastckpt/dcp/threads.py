"""How many threads a rank takes: the ranks of a host share its CPUs."""

from __future__ import annotations

import os

from fastckpt.io.transfer import default_threads, thread_count


def rank_threads(threads: int | None) -> int:
    """``threads``, or the CPUs of this host divided by its ranks (LOCAL_WORLD_SIZE, which torchrun sets).

    Raises:
        UsageError: ``threads`` is not None or a whole number of at least 1.
    """
    if threads is not None:
        return thread_count(threads)
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    ranks = int(text) if text.isascii() and text.isdecimal() else 1
    return max(1, default_threads() // max(1, ranks))

"""Whether a file lies in the page cache, so that the faster of two ways to read it can be taken."""

from __future__ import annotations

from typing import Final

from fastckpt import _core
from fastckpt.io.source import Source
from fastckpt.io.transfer import direct_threads, thread_count

_WARM: Final = 0.95


def is_warm(source: Source) -> bool:
    """Whether nearly all of a file is in the page cache. Where the system does not tell, it counts as warm.

    The answer is remembered with the open file: whoever reads it in several
    passes takes the same way each time, and it is the reading itself that
    warms a file.
    """
    if source.warm is None:
        cached = _core.cached_bytes(source.fd, source.size)
        source.warm = cached is None or cached >= _WARM * source.size
    return source.warm


def reading_threads(source: Source, threads: int | None) -> int:
    """Threads to read a file with: ``threads`` if the user chose, else as many as the medium wants.

    A cold file is read past the page cache, where a thread mostly waits for the
    disk: see `direct_threads`.

    Raises:
        UsageError: ``threads`` is not None or a whole number of at least 1.
    """
    if threads is not None or is_warm(source):
        return thread_count(threads)
    return direct_threads(None)

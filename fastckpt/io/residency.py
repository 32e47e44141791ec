"""Whether a file lies in the page cache, so that the faster of two ways to read it can be taken."""

from __future__ import annotations

import os
import secrets
from typing import Final

from fastckpt import _core
from fastckpt.io.source import Source
from fastckpt.io.transfer import direct_threads, thread_count

_WARM: Final = 0.95
_SAMPLES: Final = 40


def is_warm(source: Source) -> bool:
    """Whether nearly all of a file is in the page cache.

    Of a file that belongs to another user and may not be written, Linux does not tell; then samples do.

    The answer is remembered with the open file: whoever reads it in several
    passes takes the same way each time, and it is the reading itself that
    warms a file.
    """
    if source.warm is None:
        cached = _core.cached_bytes(source.fd, source.size)
        source.warm = _seems_warm(source) if cached is None else cached >= _WARM * source.size
    return source.warm


def _seems_warm(source: Source) -> bool:
    """Whether bytes at some places are there without waiting; where the system cannot be asked so, they count as there.

    A byte that is not there begins to be fetched: for an answer that does not change the next one, its page alone,
    and the places are others each time.
    """
    missed = 0
    try:
        os.posix_fadvise(source.fd, 0, 0, os.POSIX_FADV_RANDOM)
        try:
            for _ in range(_SAMPLES):
                try:
                    os.preadv(source.fd, [bytearray(1)], secrets.randbelow(source.size), os.RWF_NOWAIT)
                except BlockingIOError:
                    missed += 1
        finally:
            os.posix_fadvise(source.fd, 0, 0, os.POSIX_FADV_NORMAL)
    except (OSError, AttributeError):  # No such call, or not on this file system.
        return True
    return missed <= (1 - _WARM) * _SAMPLES


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

"""Whether a file lies in the page cache, so that the faster of two ways to read it can be taken."""

from __future__ import annotations

import os
from typing import Final

from fastckpt.io.source import Source
from fastckpt.io.transfer import direct_threads, thread_count

_SAMPLES: Final = 64
_WARM: Final = 0.95


def is_warm(source: Source) -> bool:
    """Whether nearly all of a file is in the page cache, judged by evenly spaced samples.

    RWF_NOWAIT reads only what needs no waiting for the disk. Where it is not
    supported the file counts as warm.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return True
    present = 0
    byte = bytearray(1)
    for sample in range(_SAMPLES):
        try:
            present += os.preadv(source.fd, [byte], sample * (source.size - 1) // (_SAMPLES - 1), os.RWF_NOWAIT)
        except BlockingIOError:
            pass
        except OSError:
            return True
    return present >= _WARM * _SAMPLES


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

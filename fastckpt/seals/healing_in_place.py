"""A damaged file healed where it is: only leaves that differ are written, and none before its digest proves it.

Whatever ends it early leaves no leaf worse than it was, so the next repair goes on from there.
"""

from __future__ import annotations

import os

from fastckpt.errors import DamagedError
from fastckpt.io.commit import write_all
from fastckpt.io.how import How
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.source import Identity, Source, identity_of
from fastckpt.layout.blocks import Extent
from fastckpt.seals.healing import heal_leaves
from fastckpt.seals.parity_source import ParitySource
from fastckpt.seals.standing import Standing


def heal_in_place(source: Source, remains: ParitySource, standing: Standing, how: How) -> list[int]:
    """Write every lost leaf that comes back into the file; what is behind all that was sealed is cut off.

    In the end every leaf of the file is compared with the seal, those that were written as the disk has them.

    Returns:
        The numbers of the lost leaves that did not come back, ascending. They are as they were.

    Raises:
        CheckpointIOError, OutOfSpaceError: A leaf cannot be read or written; those before it are healed.
        DamagedError: Something else writes to it, or what was written is not what is there now.
        KeyboardInterrupt: Within 0.2 s of Ctrl-C; leaves that were written are healed.
    """
    sums, path = remains.sums, source.path
    unhealed = dict.fromkeys(standing.bad_numbers)  # Ascending, as they are.
    with typed_os_errors(path, doing="open the file to write to it"):
        # Through /proc it is the file that was compared, whatever has its name by now.
        fd = os.open(f"/proc/self/fd/{source.fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        written: list[Extent] = []
        left = source.identity
        for healed in heal_leaves(source, remains, list(unhealed), threads=how.threads):
            _require_left(fd, left, path)
            extent = sums.leaf_extent(healed.leaf)
            write_all(fd, extent.offset, healed.data, path=path)
            left = _identity(fd, path)
            written.append(extent)
            del unhealed[healed.leaf]
        _require_left(fd, left, path)
        with typed_os_errors(path, doing="complete the file"):
            size = remains.complete(fd, source, list(unhealed), threads=how.threads)
            if os.fstat(fd).st_size > size:
                os.ftruncate(fd, size)
            if how.durable:
                os.fsync(fd)
                for extent in written:
                    os.posix_fadvise(fd, extent.offset, extent.size, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    with Source(path, may_be_empty=True) as now:
        found = remains.standing(now, threads=how.threads, progress=how.progress)
    if found.stale or found.behind or found.bad_numbers != list(unhealed):
        raise DamagedError(
            "what was written to the file is not what is there now: something else writes to it, or the disk fails",
            path=path,
            next_step="repair it when nobody writes to it; look at the disk: dmesg",
        )
    return list(unhealed)


def _identity(fd: int, path: str) -> Identity:
    with typed_os_errors(path, doing="look at the file"):
        return identity_of(os.fstat(fd))


def _require_left(fd: int, left: Identity, path: str) -> None:
    """Raise DamagedError unless the file is as it was left: what was lost in it may be something else by now."""
    if _identity(fd, path) != left:
        raise DamagedError(
            "something else writes to the file while it is repaired; nothing more is written",
            path=path,
            next_step="repair it when nobody writes to it",
        )

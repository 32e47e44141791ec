"""A copy of a damaged file in which every leaf that parity heals is as it was sealed, and is proven to be.

`fastckpt.repair` gives it the name of the damaged file; `fastckpt.salvage` only looks at it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

from fastckpt.constants import LEAF_DIGEST_SIZE, LEAF_SIZE
from fastckpt.errors import DamagedError
from fastckpt.io.cloning import reflink
from fastckpt.io.commit import write_all
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.source import Source
from fastckpt.io.space import reserve_space
from fastckpt.io.transfer import NOWHERE, Move, Progress, transfer
from fastckpt.layout.blocks import Extent
from fastckpt.layout.records import count_leaves
from fastckpt.seals.bad_leaves import differing
from fastckpt.seals.healing import heal_leaves
from fastckpt.seals.parity_source import ParitySource
from fastckpt.seals.standing import Standing

_COPYING: Final = 4
"""Threads that copy, at most: each has 4 MiB of its own, and so many keep a disk busy."""


class HealedCopy:
    """The copy, in an empty file that is open: first `write` it, then `require_proven`.

    Args:
        fd: Where it goes.
        path: What that is called in errors.
        remains: Where the parity of the damaged file is.
        standing: How that stands to it.
        direct_fd: The empty file opened with O_DIRECT, or -1.

    Attributes:
        unhealed: The numbers of the lost leaves that did not come back, ascending. They have the bytes of the damaged
            file; those that it does not have, or that cannot be read, are zero.
    """

    def __init__(self, fd: int, path: str, remains: ParitySource, standing: Standing, *, direct_fd: int = -1) -> None:
        self.unhealed = standing.bad_numbers
        self._fd, self._direct_fd, self._path = fd, direct_fd, path
        self._remains, self._standing = remains, standing
        self._copied: list[tuple[Move, memoryview]] | None = None  # None: nothing was; it shares what the file has.

    def write(self, source: Source, *, threads: int, progress: Progress | None = None) -> None:
        """Copy what is there, and put what was healed in its place.

        Raises:
            OutOfSpaceError, CheckpointIOError: The copy cannot be written, or a part of the file not be read any more.
            DamagedError: The file became shorter.
            KeyboardInterrupt: Within 0.2 s of Ctrl-C.
        """
        self._copy(source, threads, progress)
        sums = self._remains.sums
        unhealed = dict.fromkeys(self.unhealed)  # Ascending, as they are.
        for healed in heal_leaves(source, self._remains, self.unhealed, threads=threads):
            write_all(self._fd, sums.leaf_extent(healed.leaf).offset, healed.data, path=self._path)
            del unhealed[healed.leaf]
        self.unhealed = list(unhealed)

    def _copy(self, source: Source, threads: int, progress: Progress | None) -> None:
        size = self._remains.sums.size
        with typed_os_errors(self._path, size, doing="set the length of the file"):
            if reflink(self._fd, source):
                os.ftruncate(self._fd, size)
                return
        with typed_os_errors(self._path, doing=f"reserve {size} bytes"):
            reserve_space(self._fd, size, self._path)
        unread = [self._remains.sums.leaf_extent(run.first, run.leaves) for run in self._standing.bad if run.errno]
        moves = list(_parts_between(unread, min(source.size, size)))
        with typed_os_errors(self._path, doing="write the file"):
            moved = transfer(
                moves,
                source=source.fd,
                source_direct=source.direct_fd,
                sink=self._fd,
                sink_direct=self._direct_fd,
                threads=min(threads, _COPYING),
                progress=progress,
            )
        for fault in moved.faults:
            source.raise_fault(moves[fault.move].source + fault.offset, fault.errno)
        self._copied = _by_move(moves, moved.leaves)

    def complete(self, source: Source, *, threads: int) -> int:
        """Put what stands behind all that parity covers into the copy; returns how long that must be. Raises as
        `ParitySource.complete`.
        """
        return self._remains.complete(self._fd, source, self.unhealed, threads=threads)

    def require_proven(self, *, threads: int, read: bool = True, progress: Progress | None = None) -> None:
        """Compare every leaf of the copy with the seal, but those that are known not to be healed.

        Args:
            threads: Worker threads.
            read: Read the copy: what the disk made of it counts. If not, the digests count that the leaves had when
                they were written; a copy that shares the bytes of the damaged file is read all the same.
            progress: Called now and then with the bytes read so far.

        Raises:
            DamagedError: One of them is not what was sealed.
        """
        sums = self._remains.sums
        copied, passed_over = self._copied, set(self._standing.bad_numbers)
        if read or copied is None:
            parts = list(_parts_between([sums.leaf_extent(leaf) for leaf in self.unhealed], sums.size))
            moved = transfer(parts, source=self._fd, sink=NOWHERE, threads=threads, progress=progress)
            copied, passed_over = _by_move(parts, moved.leaves), set()
        for part, leaves in copied:
            extent = Extent(part.source, part.size)
            found = differing(leaves, sums.digests_of(extent), part.source // LEAF_SIZE)
            if any(leaf not in passed_over for run in found for leaf in range(run.first, run.end)):
                raise DamagedError(
                    "the new file is not what was sealed: the damaged one changed meanwhile, or the disk fails; it is "
                    "not kept",
                    path=self._path,
                    next_step="repair it when nobody writes to it; look at the disk: dmesg",
                )


def _by_move(moves: Sequence[Move], leaves: memoryview) -> list[tuple[Move, memoryview]]:
    """Each move with the digests of its leaves."""
    own, at = [], 0
    for move in moves:
        end = at + count_leaves(move.size) * LEAF_DIGEST_SIZE
        own.append((move, leaves[at:end]))
        at = end
    return own


def _parts_between(holes: Sequence[Extent], end: int) -> Iterator[Move]:
    """Bytes ``[0, end)`` without these, to where they are."""
    at = 0
    for hole in [*holes, Extent(end, 0)]:
        stop = min(hole.offset, end)
        if at < stop:
            yield Move(at, at, stop - at)
        at = max(at, hole.end)

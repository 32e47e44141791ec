"""Moving bytes: the typed face of the native engine.

A move takes extents from a file or memory to a file or memory, on several
threads without the GIL, and can compute leaf digests and CRC-32s on the way.
Comparing digests is left to the caller: it costs nothing beside the move.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from fastckpt import _core
from fastckpt.constants import CHUNK_SIZE, LEAF_SIZE
from fastckpt.errors import CheckpointIOError, require_positive

Progress = Callable[[int], None]
"""Called now and then with the bytes done so far in the current move."""

MEMORY: Final = -1
"""As a source or sink: offsets are memory addresses."""
NOWHERE: Final = -2
"""As a sink: only digests and CRCs are wanted."""


class Move(NamedTuple):
    """``size`` bytes from ``source`` to ``sink`` (file offsets or addresses)."""

    source: int
    sink: int
    size: int


class Fault(NamedTuple):
    """A part of a source that could not be read; ``errno`` 0 is the end of the file."""

    move: int
    offset: int
    size: int
    errno: int


class Moved(NamedTuple):
    """What a transfer gives back.

    Attributes:
        leaves: Leaf digests of all moves, one u64 each, move after move; empty if not asked for.
        crcs: CRC-32 of each move; empty if not asked for.
        faults: What could not be read. Its leaf digests mean nothing.
    """

    leaves: memoryview
    crcs: array[int]
    faults: list[Fault]

    def require_read(self, moves: Sequence[Move]) -> None:
        """Raise CheckpointIOError if some of what was to be moved could not be read."""
        if self.faults:
            fault = self.faults[0]
            raise unread_source(fault.errno, moves[fault.move].source + fault.offset)


def unread_source(errno: int, offset: int) -> CheckpointIOError:
    """The error for bytes of a source that could not be read; ``errno`` 0 is the end of the file."""
    reason = os.strerror(errno) if errno else "the file ends there"
    return CheckpointIOError(f"cannot read the source: {reason}", errno=errno or None, offset=offset)


def default_threads() -> int:
    """Threads a load or save uses unless told otherwise: the CPUs this process may run on, at most 16."""
    try:
        available = len(os.sched_getaffinity(0))
    except AttributeError:
        available = os.cpu_count() or 1
    return max(1, min(available, 16))


def thread_count(threads: int | None) -> int:
    """Check a user's ``threads`` argument. Raises UsageError unless it is None or at least 1."""
    if threads is None:
        return default_threads()
    require_positive("threads", threads)
    return min(threads, 256)


def direct_threads(threads: int | None) -> int:
    """Threads for O_DIRECT: ``threads`` if the user chose, else enough to keep the disk's queue full.

    Raises:
        UsageError: See `thread_count`.
    """
    return thread_count(threads) if threads is not None else max(8, 2 * default_threads())


def transfer(
    moves: Iterable[Move],
    *,
    source: int,
    sink: int,
    threads: int,
    leaves: bool = True,
    crcs: bool = False,
    source_direct: int = -1,
    sink_direct: int = -1,
    mapped: bool = False,
    release: bool = False,
    progress: Progress | None = None,
) -> Moved:
    """Carry out ``moves``.

    Args:
        moves: What to move. A move's leaves are counted from its first byte.
        source: File descriptor, or MEMORY.
        sink: File descriptor, MEMORY or NOWHERE.
        threads: Worker threads.
        leaves: Compute leaf digests.
        crcs: Compute a CRC-32 per move.
        source_direct: The source file opened with O_DIRECT, for what the page cache does not hold.
        sink_direct: The sink file opened with O_DIRECT; -1 writes through the page cache.
        mapped: The source memory is a mapped file: what of it is not there or unreadable is a fault, not SIGBUS.
        release: Of such a shared map, give back the pages that were moved: they no longer count as memory in use.
        progress: See `Progress`.

    Raises:
        OSError: Writing failed. Reading never raises: see `Moved.faults`.
        KeyboardInterrupt: Within 0.2 s of Ctrl-C, with all threads stopped.
    """
    rows = array("Q")
    leaf_count = move_count = 0
    for origin, target, size in moves:
        rows.extend((origin, target, size, leaf_count if leaves else 0))
        leaf_count += -(-size // LEAF_SIZE)
        move_count += 1
    digests = bytearray(leaf_count * 8) if leaves else bytearray()
    sums = array("I", bytes(4 * move_count)) if crcs else array("I")
    faults = _core.transfer(
        source,
        sink,
        rows,
        digests if leaves else None,
        sums if crcs else None,
        threads=threads,
        source_direct_fd=source_direct,
        sink_direct_fd=sink_direct,
        mapped=mapped,
        release=release,
        progress=progress,
    )
    return Moved(memoryview(digests), sums, [Fault(*fault) for fault in faults])


class Turn(NamedTuple):
    """Moves from one source: a file descriptor, and the same file opened with O_DIRECT or -1; or MEMORY and -1."""

    source: int
    source_direct: int
    moves: Sequence[Move]


class TurnMover:
    """Moves to a file, turn after turn, on threads that stay from the first to the last.

    Several turns are open at a time: while the caller sees to one that is done, the
    threads are at the next. The memory that a turn moves must be as it shall be
    when it is opened, and stay until it is done.

    Args:
        turns: What to move.
        sink: File descriptor.
        sink_direct: The same file opened with O_DIRECT, or -1.
        threads: Worker threads.
        crcs: Compute a CRC-32 per move.
        progress: See `Progress`; of all turns together.
        open_turns: How many are open at a time, at the start as later.
        hashed: For each turn, whether its leaves are hashed. What is said of a turn may change until it is opened.
        tally: What is summed up of all that is written, see `Tally.native`.

    Zeros follow what each move writes, up to the next multiple of 4 KiB of the file: its last
    bytes are part of a direct write that way. Through the page cache they would wait for all
    direct ones under way, and those that follow for them.
    """

    OPEN: Final = 2

    def __init__(
        self,
        turns: Sequence[Turn],
        *,
        sink: int,
        sink_direct: int,
        threads: int,
        crcs: bool,
        progress: Progress | None,
        open_turns: int = OPEN,
        hashed: bytearray | None = None,
        tally: object | None = None,
    ) -> None:
        rows, ends, sources = array("Q"), array("Q"), array("i")
        leaves = total = 0
        self._leaf_ends: list[int] = []
        for turn in turns:
            for origin, target, size in turn.moves:
                rows.extend((origin, target, size, leaves))
                leaves += -(-size // LEAF_SIZE)
                total += size
            ends.append(len(rows) // 4)
            sources.extend((turn.source, turn.source_direct))
            self._leaf_ends.append(leaves)
        self._ends = ends
        self._leaves = bytearray(8 * leaves)
        self._crcs = array("I", bytes(4 * (len(rows) // 4))) if crcs else array("I")
        self._progress = progress
        self._waited = 0
        self._native = _core.SlotFiller(
            MEMORY,
            rows,
            ends,
            self._leaves,
            self._crcs if crcs else None,
            slots=open_turns,
            threads=min(threads, total // CHUNK_SIZE + 1),
            sink_fd=sink,
            sink_direct_fd=sink_direct,
            sources=sources,
            hashed=hashed,
            padded=True,
            tally=tally,
        )

    def wait(self) -> Moved:
        """What became of the next turn, once all of it is in the file.

        Raises:
            OSError: Writing failed. Reading never raises: see `Moved.faults`.
            KeyboardInterrupt: Within 0.2 s of Ctrl-C. The threads are still there then: `close`.
        """
        turn = self._waited
        faults = self._native.wait(turn, self._progress)
        self._waited += 1
        first, first_leaf = (self._ends[turn - 1], self._leaf_ends[turn - 1]) if turn else (0, 0)
        return Moved(
            memoryview(self._leaves)[8 * first_leaf : 8 * self._leaf_ends[turn]],
            self._crcs[first : self._ends[turn]],
            [Fault(move - first, offset, size, errno) for move, offset, size, errno in faults],
        )

    def release(self) -> None:
        """Let the threads go on with the turn after the one that is open already."""
        self._native.release()

    def close(self) -> None:
        """Stop; no thread is left when this returns."""
        self._native.close()

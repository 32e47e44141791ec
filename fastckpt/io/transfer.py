"""Moving bytes: the typed face of the native engine.

A move takes extents from a file or memory to a file or memory, on several
threads without the GIL, and can compute leaf digests and CRC-32s on the way.
Comparing digests is left to the caller: it costs nothing beside the move.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from fastckpt import _core
from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import UsageError

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
    if type(threads) is not int or threads < 1:
        raise UsageError("threads must be a whole number of at least 1", actual=threads)
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
        mapped: The source memory is a mapped file, whose pages may be unreadable.
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
        populate=mapped,
        release=release,
        progress=progress,
    )
    return Moved(memoryview(digests), sums, [Fault(*fault) for fault in faults])

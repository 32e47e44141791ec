"""Reading from a file of which parts may not be there, or not be readable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fastckpt.errors import CheckpointIOError, DamagedError
from fastckpt.io.source import Source
from fastckpt.io.transfer import NOWHERE, Fault, Move, Progress

_PAGE: Final = 4096
"""What a bad sector makes unreadable: the page cache reads no less."""


def read_there(source: Source, offset: int, size: int) -> bytes:
    """The bytes of a range that are in the file: fewer than ``size`` at its end, none if it begins beyond.

    Pages that the system cannot read are zeros.
    """
    if offset < 0 or offset >= source.size or size <= 0:
        return b""
    size = min(size, source.size - offset)
    try:
        return source.read(offset, size)
    except (CheckpointIOError, DamagedError):
        return b"".join(_pages(source, offset, offset + size))


def can_read(source: Source, offset: int, size: int) -> bool:
    """Whether the system can read a range, as far as it is in the file."""
    try:
        source.read(offset, max(min(size, source.size - offset), 0))
    except CheckpointIOError:
        return False
    except DamagedError:
        return True
    return True


def unreadable_parts(
    source: Source, ranges: Sequence[tuple[int, int]], *, threads: int, progress: Progress | None
) -> list[list[Fault]]:
    """Read ranges (offset and size, all inside the file); for each, its parts that the system cannot read."""
    moves = [Move(offset, 0, size) for offset, size in ranges]
    moved = source.transfer(moves, sink=NOWHERE, threads=threads, leaves=False, progress=progress)
    parts: list[list[Fault]] = [[] for _ in ranges]
    for fault in moved.faults:
        parts[fault.move] += narrowed(source, ranges[fault.move][0], fault)
    return parts


def narrowed(source: Source, start: int, fault: Fault) -> list[Fault]:
    """The pages of a fault that really cannot be read; ``start`` is where its move begins in the file.

    A transfer gives up on all of the piece that it was reading.
    """
    if not fault.errno:
        return [fault]
    bad = []
    at, end = start + fault.offset, start + fault.offset + fault.size
    while at < end:
        size = min(_PAGE - at % _PAGE, end - at)
        if not can_read(source, at, size):
            bad.append(fault._replace(offset=at - start, size=size))
        at += size
    # What can be read after all is not to be relied on.
    return bad or [fault]


def _pages(source: Source, at: int, end: int) -> list[bytes]:
    pages = []
    while at < end:
        size = min(_PAGE - at % _PAGE, end - at)
        try:
            pages.append(source.read(at, size))
        except CheckpointIOError:
            pages.append(bytes(size))
        except DamagedError:
            break  # The file became shorter.
        at += size
    return pages

"""CRC-32s and leaf digests of parts of a file, by the faster of two ways.

What the page cache holds is summed where it is mapped, without the copy that
takes longer than the sum itself. A part that cannot be had that way is left
to plain reading, which alone decides what is missing and what is unreadable.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastckpt import _core
from fastckpt.errors import FastckptError
from fastckpt.io.residency import is_warm
from fastckpt.io.source import Source
from fastckpt.io.transfer import MEMORY, NOWHERE, Move, Moved, Progress, transfer


def sum_parts(source: Source, parts: Sequence[Move], *, threads: int, progress: Progress | None = None) -> Moved:
    """The CRC-32 of every part, of which only ``source`` and ``size`` count.

    Returns:
        ``crcs`` and ``faults``; a part may reach beyond the end of the file, which is a fault.

    Raises:
        KeyboardInterrupt: Within 0.2 s of Ctrl-C.
    """
    return _pass_over(source, parts, threads, progress, leaves=False)


def hash_parts(source: Source, parts: Sequence[Move], *, threads: int, progress: Progress | None = None) -> Moved:
    """The leaf digests of every part, whose leaves are counted from its first byte; otherwise as `sum_parts`."""
    return _pass_over(source, parts, threads, progress, leaves=True)


def _pass_over(
    source: Source, parts: Sequence[Move], threads: int, progress: Progress | None, *, leaves: bool
) -> Moved:
    inside = all(part.source + part.size <= source.size for part in parts)
    if inside and is_warm(source):
        moved = _pass_over_mapped(source, parts, threads, progress, leaves=leaves)
        if moved is not None and not moved.faults:
            return moved
    return source.transfer(
        parts,
        sink=NOWHERE,
        threads=threads,
        leaves=leaves,
        crcs=not leaves,
        progress=progress,
    )


def _pass_over_mapped(
    source: Source, parts: Sequence[Move], threads: int, progress: Progress | None, *, leaves: bool
) -> Moved | None:
    """The same in mapped memory; None where the file cannot be mapped (any more)."""
    try:
        mapping = source.map()
    except FastckptError:
        return None
    origin = _core.address(memoryview(mapping))
    return transfer(
        (Move(origin + part.source, 0, part.size) for part in parts),
        source=MEMORY,
        sink=NOWHERE,
        threads=threads,
        leaves=leaves,
        crcs=not leaves,
        mapped=True,
        release=True,
        progress=progress,
    )

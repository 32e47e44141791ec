"""The digests of all bytes of a file: its leaves and, in the same pass, SHA-256."""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

from fastckpt import _core
from fastckpt.io.memory import allocate
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.io.sums import hash_parts
from fastckpt.io.transfer import MEMORY, Move, Progress

_WINDOW: Final = 16 * 2**20
"""Bytes that are in memory at a time for SHA-256: a multiple of a leaf."""


class Digests(NamedTuple):
    """Attributes: those of the leaves, u64 little-endian each; SHA-256 in hex, if it was wanted."""

    leaves: memoryview
    sha256: str | None


def digests_of(source: Source, *, sha256: bool, threads: int | None, progress: Progress | None = None) -> Digests:
    """Read all of an open file.

    Without SHA-256 what the page cache holds is hashed where it lies; that needs one thread's work for every byte, and
    each of them in order, so it goes through memory of 16 MiB.

    Raises:
        CheckpointIOError: A byte cannot be read.
        DamagedError: The file became shorter.
        KeyboardInterrupt: Within 0.2 s of Ctrl-C.
    """
    count = reading_threads(source, threads)
    if sha256:
        return _with_sha256(source, count, progress)
    moved = hash_parts(source, [Move(0, 0, source.size)] if source.size else [], threads=count, progress=progress)
    for fault in moved.faults:
        source.raise_fault(fault.offset, fault.errno)
    return Digests(moved.leaves.toreadonly(), None)


def _with_sha256(source: Source, threads: int, progress: Progress | None) -> Digests:
    leaves, sha = bytearray(), hashlib.sha256()
    room = allocate(min(_WINDOW, source.size))
    for begin in range(0, source.size, _WINDOW):
        size = min(_WINDOW, source.size - begin)
        moved = source.transfer([Move(begin, _core.address(room), size)], sink=MEMORY, threads=threads)
        for fault in moved.faults:
            source.raise_fault(begin + fault.offset, fault.errno)
        sha.update(room[:size])
        leaves += moved.leaves
        if progress is not None:
            progress(begin + size)
    return Digests(memoryview(bytes(leaves)), sha.hexdigest())

"""One way to call ``transfer`` for all kinds of source and sink, with guards around what it may touch."""

from __future__ import annotations

import ctypes
import os
import random
import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from fastckpt import _core
from fastckpt.constants import LEAF_SIZE

Row = tuple[int, int, int, int]
POISON = 0xA5
POISONED_LEAF = 0xA5A5A5A5A5A5A5A5


def pack(rows: Iterable[Row]) -> bytes:
    """Extents as the core takes them."""
    return b"".join(struct.pack("=4Q", *row) for row in rows)


def leaves_of(data: bytes) -> list[int]:
    """The leaf digests of one extent, by the oracle."""
    return [
        xxhash.xxh3_64_intdigest(data[at : at + LEAF_SIZE].ljust(LEAF_SIZE, b"\0"))
        for at in range(0, len(data), LEAF_SIZE)
    ]


@dataclass
class Piece:
    """``size`` bytes from ``source`` to ``sink``, both counted from the start of their end."""

    source: int
    sink: int
    size: int


@dataclass
class Outcome:
    """What a transfer left behind."""

    faults: list[Row]
    sink: bytes
    leaves: list[int]
    crcs: list[int]


def poisoned(size: int) -> bytearray:
    return bytearray([POISON]) * size


def first_leaves(pieces: Sequence[Piece]) -> list[int]:
    """Where each extent's digests start, with one guard digest before each."""
    starts, at = [], 1
    for piece in pieces:
        starts.append(at)
        at += -(-piece.size // LEAF_SIZE) + 1
    return [*starts, at]


def run(
    folder: Path,
    data: bytes,
    pieces: Sequence[Piece],
    *,
    source: str,
    sink: str,
    sink_size: int,
    threads: int = 2,
    hashed: bool = True,
    summed: bool = True,
    mapped: bool = False,
    memory_shift: int = 0,
) -> Outcome:
    """Moves ``pieces`` of ``data``.

    ``source`` is "memory", "file" or "direct"; ``sink`` also "none". Memory ends
    start ``memory_shift`` bytes off a 4 KiB boundary.
    """
    starts = first_leaves(pieces)
    leaves = array("Q", [POISONED_LEAF]) * starts[-1]
    crcs = array("I", [0xA5A5A5A5]) * len(pieces)
    fds: list[int] = []

    def opened(path: Path, flags: int) -> int:
        fds.append(os.open(path, flags))
        return fds[-1]

    try:
        source_fd = sink_fd = source_direct = sink_direct = -1
        source_base = sink_base = 0
        if source == "memory":
            _source_memory, source_base = aligned_memory(len(data), memory_shift)
            ctypes.memmove(source_base, data, len(data))
        else:
            path = folder / "source"
            path.write_bytes(data)
            source_fd = opened(path, os.O_RDONLY)
            if source == "direct":
                os.fsync(source_fd)
                os.posix_fadvise(source_fd, 0, 0, os.POSIX_FADV_DONTNEED)
                source_direct = opened(path, os.O_RDONLY | os.O_DIRECT)
        if sink == "none":
            sink_fd = -2
        elif sink == "memory":
            _sink_memory, sink_base = aligned_memory(sink_size, memory_shift)
            ctypes.memset(sink_base, POISON, sink_size)
        else:
            path = folder / "sink"
            path.write_bytes(poisoned(sink_size))
            sink_fd = opened(path, os.O_RDWR)
            if sink == "direct":
                sink_direct = opened(path, os.O_RDWR | os.O_DIRECT)
        rows = [
            (source_base + piece.source, sink_base + piece.sink, piece.size, start)
            for piece, start in zip(pieces, starts, strict=False)
        ]
        faults = _core.transfer(
            source_fd,
            sink_fd,
            pack(rows),
            leaves if hashed else None,
            crcs if summed else None,
            threads=threads,
            source_direct_fd=source_direct,
            sink_direct_fd=sink_direct,
            mapped=mapped,
        )
        if sink == "none":
            result = b""
        elif sink == "memory":
            result = ctypes.string_at(sink_base, sink_size)
        else:
            result = (folder / "sink").read_bytes()
    finally:
        for fd in fds:
            os.close(fd)
    return Outcome(faults, result, list(leaves), list(crcs))


def aligned_memory(size: int, shift: int) -> tuple[ctypes.Array[ctypes.c_char], int]:
    """Memory of ``size`` bytes at ``shift`` past a 4 KiB boundary: its owner and its address."""
    owner = ctypes.create_string_buffer(size + 3 * 4096 + shift)
    address = (ctypes.addressof(owner) + 4095) // 4096 * 4096 + shift
    return owner, address


def random_pieces(rng: random.Random, data_size: int, sizes: Sequence[int], aligned: bool) -> tuple[list[Piece], int]:
    """Pieces anywhere in the source, with gaps between them in the sink; and the sink's size."""
    pieces, at = [], 4096 if aligned else rng.randrange(1, 5000)
    for size in sizes:
        source = rng.randrange(0, data_size - size + 1)
        if aligned:
            source = source // 4096 * 4096
        pieces.append(Piece(source, at, size))
        at += size + rng.randrange(1, 5000)
        if aligned:
            at = -(-at // 4096) * 4096
    return pieces, at + 4096


def expected_sink(data: bytes, pieces: Sequence[Piece], sink_size: int) -> bytes:
    sink = poisoned(sink_size)
    for piece in pieces:
        sink[piece.sink : piece.sink + piece.size] = data[piece.source : piece.source + piece.size]
    return bytes(sink)


def expected_leaves(data: bytes, pieces: Sequence[Piece]) -> list[int]:
    leaves = [POISONED_LEAF]
    for piece in pieces:
        leaves += [*leaves_of(data[piece.source : piece.source + piece.size]), POISONED_LEAF]
    return leaves

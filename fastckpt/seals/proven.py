"""The bytes of a sums file that it still proves: each leaf of its tensors stands for itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fastckpt import _core
from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import DamagedError
from fastckpt.fckpt.payload import Reading, Target, read_targets
from fastckpt.io.memory import allocate
from fastckpt.io.source import Source
from fastckpt.layout.blocks import align
from fastckpt.layout.records import Record


class Place(NamedTuple):
    """Where a tensor of bytes lies: from ``offset`` on in the raw bytes of a record."""

    record: Record
    offset: int


def read_proven_bytes(
    source: Source, place: Place, start: int, end: int, *, threads: int
) -> tuple[memoryview, list[tuple[int, int]]]:
    """Bytes ``[start, end)`` of a tensor, and which of them are not proven, counted from ``start``."""
    record, low, high = place.record, place.offset + start, place.offset + end
    first = low // LEAF_SIZE * LEAF_SIZE
    region = allocate(min(align(high, LEAF_SIZE), record.raw_size) - first)
    target = Target(record, first, len(region), _core.address(region))
    bad = [
        (max(hole.leaf * LEAF_SIZE, low) - low, min((hole.leaf + hole.leaves) * LEAF_SIZE, high) - low)
        for hole in read_targets(source, [target], Reading(threads))
    ]
    return region[low - first : high - first], [hole for hole in bad if hole[0] < hole[1]]


def proven_digests(source: Source, places: Iterable[tuple[Place, int]], size: int, *, threads: int) -> memoryview:
    """The digests in a sums file, each from the first place where it is proven.

    Args:
        source: The sums file.
        places: Tensors that all digests stand in, and the byte of each that they begin at.
        size: Bytes of all digests.
        threads: Worker threads.

    Raises:
        DamagedError: One of them is proven nowhere; or the sums file has fewer bytes.
    """
    if size > source.size:
        raise DamagedError(
            "the digests of what this seal says was sealed are longer than all of it", expected=size, actual=source.size
        )
    whole = memoryview(bytearray(size))
    missing = [(0, size)] if size else []
    for place, begins in places:
        if not missing:
            break
        region, bad = read_proven_bytes(source, place, begins, begins + size, threads=threads)
        for begin, end in missing:
            whole[begin:end] = region[begin:end]
        missing = [
            (max(begin, low), min(end, high))
            for begin, end in missing
            for low, high in bad
            if max(begin, low) < min(end, high)
        ]
    if missing:
        raise DamagedError("the digests in this seal are damaged, so nothing proves what was sealed")
    return whole.toreadonly()

"""Regions and pieces: which bytes of a file lie together on the device, and how they are cut to fit the slots."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fastckpt.constants import ALIGNMENT, CHUNK_SIZE, LEAF_SIZE
from fastckpt.layout.blocks import align
from fastckpt.layout.records import Record


class Part(NamedTuple):
    """``size`` bytes of the file from ``source`` on, which stand at ``offset`` in a region."""

    source: int
    offset: int
    size: int


class Placed(NamedTuple):
    """Where the bytes of a storage stand in a region."""

    storage: int
    offset: int
    nbytes: int


@dataclass(slots=True, eq=False)
class Region:
    """Bytes that arrive side by side: one storage, or many small ones.

    Attributes:
        nbytes: Their number; 0 if it holds nothing but empty storages.
        placed: The storages in it.
        parts: Where it comes from, ascending in the region, without overlap.
            Parts may leave gaps, which keep whatever was in the slot.
        record: The record whose leaf digests prove it. It then has one part.
        start: First byte in that record, a multiple of LEAF_SIZE.
    """

    nbytes: int
    placed: list[Placed]
    parts: Sequence[Part]
    record: Record | None = None
    start: int = 0

    @property
    def is_one_storage(self) -> bool:
        """Whether it is the bytes of one storage and nothing else."""
        return len(self.placed) == 1 and self.placed[0].offset == 0 and self.placed[0].nbytes == self.nbytes


class Piece(NamedTuple):
    """The bytes ``[offset, offset + size)`` of a region, which pass through a slot at ``slot_offset``."""

    region: Region
    offset: int
    size: int
    slot_offset: int

    @property
    def ends_region(self) -> bool:
        """Whether the region is complete with this piece."""
        return self.offset + self.size == self.region.nbytes

    @property
    def leaves(self) -> range:
        """The leaves of the record that the piece consists of."""
        first = (self.region.start + self.offset) // LEAF_SIZE
        return range(first, first - (-self.size // LEAF_SIZE))

    @property
    def digests(self) -> memoryview:
        """What these leaves must hash to, u64 little-endian each; empty where the file has no leaf digests."""
        record = self.region.record
        return memoryview(b"") if record is None else record.leaves[self.leaves.start * 8 : self.leaves.stop * 8]

    def parts(self) -> Iterator[Part]:
        """The parts of the region inside the piece; their offsets count from the start of the piece."""
        parts = self.region.parts
        end = self.offset + self.size
        first = max(bisect_right(parts, self.offset, key=lambda part: part.offset) - 1, 0)
        for number in range(first, len(parts)):
            source, offset, size = parts[number]
            if offset >= end:
                return
            skip = max(self.offset - offset, 0)
            if skip < size:
                yield Part(source + skip, offset + skip - self.offset, min(offset + size, end) - offset - skip)


def cut(regions: Sequence[Region], slot_size: int) -> list[list[Piece]]:
    """The turns in which regions pass through slots of ``slot_size`` bytes, in order.

    Cuts fall between leaves, and between chunks where these must be decoded,
    unless a slot holds less than a chunk.
    """
    turns: list[list[Piece]] = []
    at = slot_size
    for region in regions:
        encoded = region.record is not None and not region.record.is_raw
        unit = CHUNK_SIZE if encoded and slot_size >= CHUNK_SIZE else LEAF_SIZE
        done = 0
        while True:
            size = region.nbytes - done
            if size > slot_size - at:
                size = (region.start + done + slot_size - at) // unit * unit - region.start - done
            if size > 0 or (not region.nbytes and turns):
                turns[-1].append(Piece(region, done, size, at))
                done += size
                # Direct I/O reads to addresses that are multiples of this.
                at = min(align(at + size, ALIGNMENT), slot_size)
                if done == region.nbytes:
                    break
            if done < region.nbytes or not turns:
                turns.append([])
                at = 0
    return turns

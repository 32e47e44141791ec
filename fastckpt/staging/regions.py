"""Regions and pieces: which bytes of a file lie together on the device, and how they are cut to fit the slots."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from fastckpt.constants import ALIGNMENT, CHUNK_SIZE, LEAF_SIZE
from fastckpt.io.memory import phase
from fastckpt.layout.blocks import align
from fastckpt.layout.records import Record

SHARED_BELOW: Final = 4 * 1024 * 1024
"""Bytes. A smaller region shares its memory with its neighbours: an allocation and a copy take the host some 10 us,
in which a link of 50 GB/s moves 0.5 MB. From this size on they are a tenth of the time of the copy or less."""


class Part(NamedTuple):
    """``size`` bytes of the file from ``source`` on, which stand at ``offset`` in a region.

    Where leaf digests prove them, they are the raw bytes of ``record`` from ``start`` on, a multiple of LEAF_SIZE;
    of an encoded record ``source`` means nothing.
    """

    source: int
    offset: int
    size: int
    record: Record | None = None
    start: int = 0


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
        placed: The storages in it, ascending.
        parts: Where it comes from, ascending in the region, without overlap.
            Parts may leave gaps, which keep whatever was in the slot.
    """

    nbytes: int
    placed: list[Placed]
    parts: Sequence[Part]

    @property
    def is_one_storage(self) -> bool:
        """Whether it is the bytes of one storage and nothing else."""
        return len(self.placed) == 1 and self.placed[0].offset == 0 and self.placed[0].nbytes == self.nbytes

    def parts_around(self, offset: int, size: int) -> Iterator[Part]:
        """The parts that have bytes in ``[offset, offset + size)``, each of them whole."""
        first = max(bisect_right(self.parts, offset, key=lambda part: part.offset) - 1, 0)
        for number in range(first, len(self.parts)):
            part = self.parts[number]
            if part.offset >= offset + size:
                return
            if part.offset + part.size > offset:
                yield part


class Suspect(NamedTuple):
    """Bytes ``[offset, offset + size)`` of a region that are not as written, and must not be used."""

    region: Region
    offset: int
    size: int


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

    def parts(self) -> Iterator[Part]:
        """The parts of the region inside the piece; their offsets count from the start of the piece."""
        end = self.offset + self.size
        for source, offset, size, record, start in self.region.parts_around(self.offset, self.size):
            skip = max(self.offset - offset, 0)
            here = min(offset + size, end) - offset - skip
            yield Part(source + skip, offset + skip - self.offset, here, record, start + skip)


def joined(regions: Iterable[Region], limit: int, alone: Callable[[Region], bool]) -> list[Region]:
    """The regions in their order, small neighbours as one.

    Args:
        regions: What is wanted.
        limit: Bytes that joined regions may have together. One tensor that stays alive holds as much.
        alone: Whether a region needs a memory of its own.
    """
    found: list[Region] = []
    group: list[Region] = []
    end = 0
    for region in regions:
        at = _place(end, group[0], region) if group else 0
        small = region.nbytes < SHARED_BELOW and not alone(region)
        if group and (not small or at + region.nbytes > limit):
            found.append(_as_one(group))
            group, at = [], 0
        if small:
            group.append(region)
            end = at + region.nbytes
        else:
            found.append(region)
    if group:
        found.append(_as_one(group))
    return found


def _as_one(group: Sequence[Region]) -> Region:
    if len(group) == 1:
        return group[0]
    placed: list[Placed] = []
    parts: list[Part] = []
    end = 0
    for region in group:
        at = _place(end, group[0], region)
        placed += [Placed(storage, at + offset, nbytes) for storage, offset, nbytes in region.placed]
        parts += [part._replace(offset=at + part.offset) for part in region.parts]
        end = at + region.nbytes
    return Region(end, placed, parts)


def _place(end: int, first: Region, region: Region) -> int:
    """Where behind ``end`` bytes of a joined region another one begins, which lies at its `phase` there."""
    return align(end, ALIGNMENT) + (_phase(region, 0) - _phase(first, 0) if region.parts else 0) % ALIGNMENT


def cut(regions: Sequence[Region], slot_size: int) -> list[list[Piece]]:
    """The turns in which regions pass through slots of ``slot_size`` bytes, in order.

    Cuts fall between leaves, and between chunks where these must be decoded,
    unless a slot holds less than a chunk. Pieces lie at the `phase` of their bytes
    where there is room for it.
    """
    turns: list[list[Piece]] = []
    at = slot_size
    for region in regions:
        if slot_size > LEAF_SIZE:
            at = min(at + _phase(region, 0), slot_size)
        done = 0
        while True:
            size = region.nbytes - done
            if size > slot_size - at:
                size = _last_cut(region, done + slot_size - at, slot_size) - done
            if size > 0 or (not region.nbytes and turns):
                turns[-1].append(Piece(region, done, size, at))
                done += size
                at = min(align(at + size, ALIGNMENT), slot_size)
                if done == region.nbytes:
                    break
            if done < region.nbytes or not turns:
                turns.append([])
                at = _phase(region, done) if slot_size > LEAF_SIZE else 0
    return turns


def _phase(region: Region, start: int) -> int:
    """Where within 4 KiB a piece of a region should lie that begins at ``start``, so that its parts lie at theirs."""
    part = next(region.parts_around(start, region.nbytes - start), None)
    if part is None:
        return 0
    encoded = part.record is not None and not part.record.is_raw
    return ((0 if encoded else phase(part.source)) + start - part.offset) % ALIGNMENT


def _last_cut(region: Region, limit: int, slot_size: int) -> int:
    """The last place in a region, up to ``limit``, at which it may be cut."""
    number = bisect_left(region.parts, limit, key=lambda part: part.offset) - 1
    if number < 0:
        return 0
    _, offset, size, record, start = region.parts[number]
    if limit >= offset + size:
        return limit
    encoded = record is not None and not record.is_raw
    unit = CHUNK_SIZE if encoded and slot_size >= CHUNK_SIZE else LEAF_SIZE
    return max((start + limit - offset) // unit * unit - start, 0) + offset

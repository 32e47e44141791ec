"""What of a piece goes to a device as it is stored, to be decoded there, and where in the slot it passes through.

A piece has room in its slot for all its raw bytes, and encoded ones are fewer:
so chunks that follow one another lie where the raw bytes of the first would.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

from fastckpt.constants import ALIGNMENT, CHUNK_SIZE, CODEC_NONE, CODEC_PLANES
from fastckpt.io.memory import phase
from fastckpt.layout.records import Record
from fastckpt.staging.regions import Part, Piece, Region

WORTH_DECODING: Final = 64 * 1024
"""Raw bytes. Smaller chunks are decoded on the host: each takes 21 KiB of tables on the device, however small it is."""

Kind = Literal["raw", "planes", "other"]


class Stretch(NamedTuple):
    """Bytes of one part of a piece that are treated alike.

    Attributes:
        kind: ``raw``: they are stored as they are. ``planes``: whole chunks, which the device can decode. ``other``:
            for the host to decode.
        record: Whose bytes they are; None for bytes of no record, which are raw.
        start: Where in its raw bytes they begin.
        offset: Where in the piece they begin.
        size: How many they are.
        source: Where in the file the stored bytes begin.
        stored_size: How many these are; 0 for ``other``.
        place: Where in the room of the piece they stand.
    """

    kind: Kind
    record: Record | None
    start: int
    offset: int
    size: int
    source: int
    stored_size: int
    place: int

    def chunks(self) -> Iterator[tuple[int, int, int, int]]:
        """For each chunk of planes, where its stored bytes begin in the stretch, how many, and its raw ones."""
        assert self.record is not None, "only records have chunks"
        at = done = 0
        while done < self.size:
            chunk = (self.start + done) // CHUNK_SIZE
            stored_size, size = self.record.chunks[chunk].stored_size, self.record.chunk_raw(chunk).size
            yield at, stored_size, done, size
            at, done = at + stored_size, done + size


def has_planes(regions: Iterable[Region]) -> bool:
    """Whether a device could decode some of it."""
    records = {id(part.record): part.record for region in regions for part in region.parts if part.record is not None}
    return any(chunk.codec == CODEC_PLANES for record in records.values() for chunk in record.chunks)


def stretches_of(piece: Piece) -> Iterator[Stretch]:
    """A piece, cut where what is to be done changes."""
    for part in piece.parts():
        record = part.record
        if record is None or record.is_raw:
            yield Stretch("raw", record, part.start, part.offset, part.size, part.source, part.size, part.offset)
            continue
        open_: Stretch | None = None
        for chunk in _chunks_of(record, part):
            if open_ is not None and open_.kind == chunk.kind:
                size, stored_size = open_.size + chunk.size, open_.stored_size + chunk.stored_size
                open_ = open_._replace(size=size, stored_size=stored_size)
                continue
            if open_ is not None:
                yield _in_phase(open_, piece)
            open_ = chunk
        if open_ is not None:
            yield _in_phase(open_, piece)


def _chunks_of(record: Record, part: Part) -> Iterator[Stretch]:
    """A part of an encoded record, chunk by chunk."""
    stop = part.start + part.size
    for chunk in range(part.start // CHUNK_SIZE, -(-stop // CHUNK_SIZE)):
        raw, extent = record.chunk_raw(chunk), record.chunk_extent(chunk)
        start, end = max(raw.offset, part.start), min(raw.end, stop)
        offset = part.offset + start - part.start
        codec = record.chunks[chunk].codec
        whole = end - start == raw.size >= WORTH_DECODING
        if codec == CODEC_NONE:
            size = end - start
            yield Stretch("raw", record, start, offset, size, extent.offset + start - raw.offset, size, offset)
        elif codec == CODEC_PLANES and whole and extent.size % 8 == 0:
            yield Stretch("planes", record, start, offset, raw.size, extent.offset, extent.size, offset)
        else:
            yield Stretch("other", record, start, offset, end - start, extent.offset, 0, offset)


def _in_phase(stretch: Stretch, piece: Piece) -> Stretch:
    """The same, where direct reads need no copy if there is room for that."""
    shift = (phase(stretch.source) - piece.slot_offset - stretch.place) % ALIGNMENT
    if stretch.kind == "planes" and stretch.stored_size + shift <= stretch.size:
        return stretch._replace(place=stretch.place + shift)
    return stretch

"""Writing a checkpoint file from raw bytes that lie in memory or in another file.

The storages' bytes come from one source: process memory (a save) or a foreign
file (a conversion); what lies on a device is brought to memory piece by piece
by a `Supply`. Every byte passes once: read, hashed, written. Within a
record the payload is written before the header, and the footer comes last, so
that what a killed writer leaves behind says exactly what is whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Final

from fastckpt import _core
from fastckpt.codec.registry import Codec, codec_for_writing
from fastckpt.collector import collector_paused
from fastckpt.constants import (
    FOOTER_SIZE,
    SECTION_DIRECTORY,
    SECTION_FLAG_MUST_UNDERSTAND,
    SECTION_INDEX,
    SECTION_MANIFEST,
    SECTION_MANIFEST_COPY,
    SUPERBLOCK_SIZE,
)
from fastckpt.errors import CheckpointIOError, FastckptError
from fastckpt.fckpt.content import Content, Delivery, Supply
from fastckpt.fckpt.encoding import encode_payload
from fastckpt.io.commit import Commit, translate_os_error
from fastckpt.io.memory import allocate
from fastckpt.io.transfer import MEMORY, Move, Moved, Progress, transfer
from fastckpt.layout.blocks import Extent, align, block_digest
from fastckpt.layout.directory import directory_size, encode_directory
from fastckpt.layout.entries import Entry, encode_entry_table
from fastckpt.layout.frame import (
    Footer,
    Section,
    encode_footer,
    encode_index,
    encode_superblock,
    index_size,
    root_digest,
)
from fastckpt.layout.manifest import encode_manifest
from fastckpt.layout.plan import RecordPlan, plan_records
from fastckpt.layout.records import (
    NO_LINKS,
    Chunk,
    Links,
    count_leaves,
    encode_record_header,
    header_size,
    raw_chunk_table,
)

BATCH: Final = 256 * 1024 * 1024
"""Raw bytes after which the headers of finished records are written. A killed
save loses at most the records of one batch to salvage."""


CheckCrcs = Callable[[Sequence[int]], None]
"""Given the CRC-32 of every storage's bytes; raises if one is not as it should be."""


@dataclass(slots=True)
class _Record:
    """A record on its way into the file."""

    number: int
    plan: RecordPlan
    entry_table: bytes
    header_size: int
    offset: int = 0
    pack: memoryview | None = None

    @property
    def payload_offset(self) -> int:
        return self.offset + self.header_size

    @property
    def is_pack(self) -> bool:
        """Whether its raw bytes must be brought together before they are written."""
        return len(self.plan.storages) != 1


class _Writer:
    """One file being written; the steps are in `write_checkpoint`."""

    def __init__(self, content: Content, *, threads: int, progress: Progress | None, want_crcs: bool) -> None:
        self.content = content
        self.threads = threads
        self.progress = progress
        self.want_crcs = want_crcs
        self.done = 0
        self.crcs = [0] * len(content.storage_sizes)
        self.headers: list[tuple[int, bytes]] = []
        self.links = NO_LINKS
        # Records whose payload is written before that of a record in front of them.
        self.waiting: dict[int, tuple[_Record, list[Chunk], bytes | memoryview]] = {}
        plans, places = plan_records(content.storage_sizes)
        entries: list[list[Entry]] = [[] for _ in plans]
        for entry in content.entries:
            entries[places[entry.storage].record].append(entry)
        self.records = []
        for number, (plan, held) in enumerate(zip(plans, entries, strict=True)):
            table = encode_entry_table(held)
            size = header_size(plan.raw_size, plan.storages, len(table))
            self.records.append(_Record(number, plan, table, size))
        self.manifest = encode_manifest(places, content.entries, content.tree, content.metadata_tree, len(plans))
        self.first_offset = self.end = SUPERBLOCK_SIZE + len(self.manifest)

    def tail_size(self) -> int:
        """Bytes after the last record: further sections, index, manifest copy, footer."""
        sections = sum(len(block) for block in self.content.sections.values())
        index = index_size([record.header_size for record in self.records])
        return sections + index + directory_size(len(self.records)) + len(self.manifest) + FOOTER_SIZE

    def place_raw(self) -> int:
        """Give every record its offset when nothing is encoded; returns the size of the file."""
        offset = self.first_offset
        for record in self.records:
            record.offset = offset
            offset = align(record.payload_offset + record.plan.raw_size)
        return offset + self.tail_size()

    def report(self, count: int) -> None:
        if self.progress is not None:
            self.progress(self.done + count)

    def move(self, moves: list[Move], *, source: int, sink: int, sink_direct: int = -1, digests: bool) -> Moved:
        """A transfer that must succeed. CRCs are computed where the source is not yet proven."""
        moved = transfer(
            moves,
            source=source,
            source_direct=self.content.source_direct if source == self.content.source != MEMORY else -1,
            sink=sink,
            sink_direct=sink_direct,
            threads=self.threads,
            leaves=digests,
            crcs=self.want_crcs and source == self.content.source,
            progress=self.report if sink != MEMORY and self.progress is not None else None,
        )
        if moved.faults:
            fault = moved.faults[0]
            offset = moves[fault.move].source + fault.offset
            reason = os.strerror(fault.errno) if fault.errno else "the file ends there"
            raise CheckpointIOError(f"cannot read the source: {reason}", errno=fault.errno or None, offset=offset)
        return moved

    def gather(self, record: _Record) -> memoryview:
        """The raw bytes of a pack, its storages copied to their places; the gaps are zero."""
        pack = allocate(record.plan.raw_size)
        base = _core.address(pack) if len(pack) else 0
        storages = [packed for packed in record.plan.storages if packed.nbytes]
        origins = self.content.origins
        for source in dict.fromkeys(self.content.source_of(packed.storage) for packed in storages):
            own = [packed for packed in storages if self.content.source_of(packed.storage) == source]
            moves = [Move(origins[storage], base + offset, nbytes) for storage, offset, nbytes in own]
            moved = self.move(moves, source=source, sink=MEMORY, digests=False)
            for packed, crc in zip(own, moved.crcs, strict=False):
                self.crcs[packed.storage] = crc
        return pack

    def write_raw(self, sink: Commit, batch: list[_Record]) -> None:
        """Write the payloads of a batch as they are, then its headers."""
        by_source: dict[int, list[tuple[_Record, Move]]] = {}
        for record in batch:
            if record.is_pack:
                with collector_paused():
                    record.pack = self.gather(record)
            if not record.plan.raw_size:
                self.write_header(sink, record, raw_chunk_table(0, b""), b"")
                continue
            first = record.plan.storages[0].storage
            source = MEMORY if record.pack is not None else self.content.source_of(first)
            origin = _core.address(record.pack) if record.pack is not None else self.content.origins[first]
            by_source.setdefault(source, []).append((record, Move(origin, record.payload_offset, record.plan.raw_size)))
        for source, jobs in by_source.items():
            moved = self.move(
                [move for _, move in jobs], source=source, sink=sink.fd, sink_direct=sink.direct_fd, digests=True
            )
            at = 0
            for number, (record, move) in enumerate(jobs):
                end = at + count_leaves(move.size) * 8
                leaves = moved.leaves[at:end]
                at = end
                if moved.crcs and not record.is_pack:
                    self.crcs[record.plan.storages[0].storage] = moved.crcs[number]
                with collector_paused():
                    self.write_header(sink, record, raw_chunk_table(move.size, leaves), leaves)
                record.pack = None
            self.done += sum(move.size for _, move in jobs)

    def write_supplied(self, sink: Commit, records: list[_Record], supply: Supply) -> None:
        """Write the payloads that the supply brings as they are, each header once its payload is there."""
        leaves = bytearray()
        with closing(_deliveries(supply, records)) as deliveries:
            for pieces in deliveries:
                moves = [Move(p.address, records[p.record].payload_offset + p.start, p.size) for p in pieces]
                moved = self.move(
                    moves,
                    source=MEMORY,
                    sink=sink.fd,
                    sink_direct=sink.direct_fd,
                    digests=any(p.leaves is None for p in pieces),
                )
                at = 0
                for piece in pieces:
                    record, end = records[piece.record], at + count_leaves(piece.size) * 8
                    # Digests from the device, where there are: they also prove the way to memory.
                    leaves += moved.leaves[at:end] if piece.leaves is None else piece.leaves
                    at = end
                    if piece.start + piece.size == record.plan.raw_size:
                        self.write_header(
                            sink, record, raw_chunk_table(record.plan.raw_size, bytes(leaves)), bytes(leaves)
                        )
                        leaves = bytearray()
                self.done += sum(p.size for p in pieces)

    def pieces_here(self, record: _Record) -> Iterator[tuple[int, Delivery]]:
        """The raw bytes of a record that no supply brings, in one piece: ``(source, piece)``."""
        first = record.plan.storages[0].storage
        source, origin = self.content.source_of(first), self.content.origins[first]
        if record.is_pack:
            record.pack = self.gather(record)
            source, origin = MEMORY, _core.address(record.pack) if len(record.pack) else 0
        yield source, Delivery(0, 0, record.plan.raw_size, origin, None)

    def write_encoded(self, sink: Commit, codec_id: int, codec: Codec) -> None:
        """Write all records with encoded chunks, one after the other; sizes are known only then."""
        supply = self.content.supply
        covered = [record for record in self.records if self.content.covered(record.plan)]
        with closing(_deliveries(supply, covered)) as deliveries:
            brought = chain.from_iterable(deliveries)
            for record in self.records:
                record.offset = self.end
                pieces: Iterator[tuple[int, Delivery]]
                if self.content.covered(record.plan):
                    pieces = ((MEMORY, piece) for piece in _up_to(brought, record.plan.raw_size))
                else:
                    pieces = self.pieces_here(record)
                self.write_header(sink, record, *self.encode_pieces(sink, record, pieces, codec_id, codec))
                record.pack = None

    def encode_pieces(
        self, sink: Commit, record: _Record, pieces: Iterator[tuple[int, Delivery]], codec_id: int, codec: Codec
    ) -> tuple[list[Chunk], bytes]:
        """Encode and write the payload of a record; its chunk table and leaf digests."""
        chunks: list[Chunk] = []
        leaves = bytearray()
        at = 0
        for source, piece in pieces:
            base = record.payload_offset + at
            encoded = encode_payload(
                source,
                piece.address,
                piece.size,
                codec_id=codec_id,
                codec=codec,
                write=lambda offset, data, base=base: sink.write(base + offset, data),  # type: ignore[misc]
                threads=self.threads,
                want_crc=self.want_crcs and not record.is_pack,
                progress=self.report,
            )
            if self.want_crcs and not record.is_pack:
                self.crcs[record.plan.storages[0].storage] = encoded.crc
            chunks += [chunk._replace(offset=at + chunk.offset) for chunk in encoded.chunks] if at else encoded.chunks
            leaves += encoded.leaves if piece.leaves is None else piece.leaves
            at += sum(chunk.stored_size for chunk in encoded.chunks)
            self.done += piece.size
        return chunks, bytes(leaves)

    def write_header(self, sink: Commit, record: _Record, chunks: list[Chunk], leaves: bytes | memoryview) -> None:
        """Write the header of a record whose payload is written, once those of all records before it are."""
        self.waiting[record.number] = (record, chunks, leaves)
        while len(self.headers) in self.waiting:
            self.write_next_header(sink, *self.waiting.pop(len(self.headers)))

    def write_next_header(self, sink: Commit, record: _Record, chunks: list[Chunk], leaves: bytes | memoryview) -> None:
        block = encode_record_header(
            number=record.number,
            offset=record.offset,
            raw_size=record.plan.raw_size,
            stored_size=sum(chunk.stored_size for chunk in chunks),
            chunks=chunks,
            leaves=leaves,
            storages=record.plan.storages,
            entry_table=record.entry_table,
            manifest_digest=block_digest(self.manifest),
            links=self.links,
        )
        self.links = Links(block_digest(block), self.links.previous)
        sink.write(record.offset, block)
        self.headers.append((record.offset, block))
        self.end = max(self.end, align(record.payload_offset + sum(chunk.stored_size for chunk in chunks)))

    def write_tail(self, sink: Commit) -> int:
        """Write further sections, index, manifest copy and footer; returns the size of the file."""
        rows = [
            Section(
                SECTION_MANIFEST, _REQUIRED, Extent(SUPERBLOCK_SIZE, len(self.manifest)), block_digest(self.manifest)
            )
        ]
        blocks = [(kind, 0, block) for kind, block in sorted(self.content.sections.items())]
        blocks.append((SECTION_INDEX, _REQUIRED, encode_index(self.headers)))
        blocks.append((SECTION_DIRECTORY, _REQUIRED, encode_directory(self.headers)))
        blocks.append((SECTION_MANIFEST_COPY, _REQUIRED, self.manifest))
        offset = self.end
        for kind, flags, block in blocks:
            sink.write(offset, block)
            rows.append(Section(kind, flags, Extent(offset, len(block)), block_digest(block)))
            offset += len(block)
        size = offset + FOOTER_SIZE
        root = root_digest(block_digest(self.manifest), [block_digest(block) for _, block in self.headers])
        sink.write(offset, encode_footer(Footer(size, len(self.records), root, tuple(rows))))
        return size


_REQUIRED: Final = SECTION_FLAG_MUST_UNDERSTAND


def _deliveries(supply: Supply | None, records: Sequence[_Record]) -> Generator[list[Delivery], None, None]:
    """What the supply brings of these records, as a generator that can be closed."""
    if supply is not None and records:
        yield from supply.deliver([record.plan for record in records])


def _up_to(pieces: Iterator[Delivery], size: int) -> Iterator[Delivery]:
    """The next pieces, up to the one that ends a record of this size."""
    for piece in pieces:
        yield piece
        if piece.start + piece.size == size:
            return


def _batches(records: Sequence[_Record]) -> Iterator[list[_Record]]:
    batch: list[_Record] = []
    size = 0
    for record in records:
        if batch and size + record.plan.raw_size > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += record.plan.raw_size
    if batch:
        yield batch


def write_checkpoint(
    content: Content,
    path: str | os.PathLike[str],
    *,
    codec: str,
    durable: bool,
    threads: int,
    progress: Progress | None = None,
    check_crcs: CheckCrcs | None = None,
) -> None:
    """Write ``content`` to ``path``, all of it or nothing.

    Args:
        content: What to write.
        path: The checkpoint file; an existing one is replaced in the end.
        codec: ``"none"``, ``"zstd"`` or ``"zstd:LEVEL"``.
        durable: Return only when the file survives a power cut.
        threads: Worker threads.
        progress: Called with the raw bytes done so far.
        check_crcs: Called before the commit with the CRC-32 of every storage,
            computed from the very bytes that were written.

    Raises:
        OutOfSpaceError, CheckpointIOError: The old file, if any, is untouched.
        UsageError: Unknown codec.
    """
    codec_id, encoder = codec_for_writing(codec)
    with collector_paused():
        writer = _Writer(content, threads=threads, progress=progress, want_crcs=check_crcs is not None)
    raw_size = writer.place_raw()
    # Encoded sizes are not known; nothing is reserved for them beyond the metadata.
    reserve = raw_size if encoder is None else writer.first_offset + writer.tail_size()
    with Commit(path, durable=durable, reserve=reserve) as sink:
        if encoder is None:
            sink.preallocate(raw_size)
        sink.write(0, encode_superblock(Extent(SUPERBLOCK_SIZE, len(writer.manifest)), block_digest(writer.manifest)))
        sink.write(SUPERBLOCK_SIZE, writer.manifest)
        try:
            if encoder is None:
                # What comes late is written last: then no header waits for long.
                for batch in _batches([record for record in writer.records if not content.covered(record.plan)]):
                    writer.write_raw(sink, batch)
                supplied = [record for record in writer.records if content.covered(record.plan)]
                if content.supply is not None and supplied:
                    writer.write_supplied(sink, supplied, content.supply)
            else:
                writer.write_encoded(sink, codec_id, encoder)
        except FastckptError:
            raise
        except OSError as error:
            raise translate_os_error(error, path) from error
        if check_crcs is not None:
            check_crcs(writer.crcs)
        sink.finish(writer.write_tail(sink))

"""Writing a checkpoint file from raw bytes that lie in memory or in another file.

The storages' bytes come from one source: process memory (a save) or a foreign
file (a conversion); what lies on a device is brought to memory piece by piece
by a `Supply`. Every byte passes once: read, hashed, written. Within a
record the payload is written before the header, and the footer comes last, so
that what a killed writer leaves behind says exactly what is whole.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

from fastckpt import _core
from fastckpt.codec.registry import Codec, codec_for_writing
from fastckpt.collector import collector_paused
from fastckpt.constants import (
    CODEC_PLANES,
    SUPERBLOCK_SIZE,
)
from fastckpt.fckpt.content import Content, Supply
from fastckpt.fckpt.encoding import EncodedPayload, encode_record
from fastckpt.fckpt.numbers import RecordNumbers
from fastckpt.fckpt.pieces import Pieces
from fastckpt.fckpt.planes_mover import PlanesMover
from fastckpt.fckpt.send_pieces import send_records
from fastckpt.fckpt.tail import tail_size, write_tail
from fastckpt.fckpt.turns import BATCH, RawTurns, RecordToWrite, SuppliedTurns
from fastckpt.io.commit import Commit
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.tally import Tally
from fastckpt.io.transfer import MEMORY, Move, Moved, Progress, Turn, TurnMover, transfer
from fastckpt.io.upload import Upload
from fastckpt.layout.blocks import Extent, align, block_digest
from fastckpt.layout.columns import rows_of
from fastckpt.layout.entries import Entry, encode_entry_table
from fastckpt.layout.frame import (
    encode_superblock,
)
from fastckpt.layout.manifest import encode_manifest
from fastckpt.layout.places import PackedStorage
from fastckpt.layout.plan import plan_records
from fastckpt.layout.records import (
    NO_LINKS,
    Chunk,
    Links,
    count_leaves,
    encode_record_header,
    header_size,
    raw_chunk_table,
)
from fastckpt.remote.path import RemotePath

CheckCrcs = Callable[[Sequence[int]], None]
"""Given the CRC-32 of every storage's bytes; raises if one is not as it should be."""


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
        self.written = 0  # How many of them.
        self.links = NO_LINKS
        # Records whose payload is written before that of a record in front of them.
        self.waiting: dict[int, tuple[RecordToWrite, list[Chunk], bytes | memoryview]] = {}
        plans, places = plan_records(content.storage_sizes)
        entries: list[list[Entry]] = [[] for _ in plans]
        for entry in content.entries:
            entries[places[entry.storage].record].append(entry)
        self.records = []
        for number, (plan, held) in enumerate(zip(plans, entries, strict=True)):
            table = encode_entry_table(held)
            size = header_size(plan.raw_size, plan.storages, len(table))
            self.records.append(RecordToWrite(number, plan, table, size))
        self.entries = entries  # Of each record.
        self.manifest = encode_manifest(places, content.entries, content.tree, content.metadata_tree, len(plans))
        self.first_offset = self.end = SUPERBLOCK_SIZE + len(self.manifest)
        header_sizes = [record.header_size for record in self.records]
        self.tail_size = tail_size(self.manifest, header_sizes, content.sections)

    def place_raw(self) -> int:
        """Give every record its offset when nothing is encoded; returns the size of the file."""
        offset = self.first_offset
        for record in self.records:
            record.offset = offset
            offset = align(record.payload_offset + record.plan.raw_size)
        return offset + self.tail_size

    def covered(self, raw_size: int) -> int:
        """Where a parity section begins in a file that would have so many bytes without it."""
        return raw_size - self.tail_size + sum(map(len, self.content.sections.values()))

    def report(self, count: int) -> None:
        if self.progress is not None:
            self.progress(self.done + count)

    def gather(self, record: RecordToWrite, pack: memoryview) -> None:
        """Copy the storages of a pack to their places in ``pack``; the gaps are zero."""
        pack[:] = bytes(len(pack))
        base = _core.address(pack) if len(pack) else 0
        by_source: dict[int, list[PackedStorage]] = defaultdict(list)
        for packed in record.plan.storages:
            if packed.nbytes:
                by_source[self.content.source_of(packed.storage)].append(packed)
        for source, own in by_source.items():
            numbers, offsets, sizes = zip(*own, strict=True)
            origins = map(self.content.origins.__getitem__, numbers)
            moves = rows_of(Move, origins, [base + offset for offset in offsets], sizes)
            moved = transfer(
                moves,
                source=source,
                source_direct=self.content.direct_of(source),
                sink=MEMORY,
                threads=self.threads,
                leaves=False,
                # Where the source is not yet proven.
                crcs=self.want_crcs and source == self.content.source,
            )
            moved.require_read(moves)
            for packed, crc in zip(own, moved.crcs, strict=False):
                self.crcs[packed.storage] = crc

    def write_raw(self, sink: Commit, records: Sequence[RecordToWrite]) -> None:
        """Write payloads as they are, and each header once its payload and all records before it are written.

        While the headers of one batch are written, the threads are at the next: the disk never waits.
        """
        plan = RawTurns(self.content, records)
        for record in plan.empty:
            self.add_header(record, raw_chunk_table(0, b""), b"")

        def gather_for(turn: int) -> None:
            with collector_paused():
                for record in plan.to_gather(turn):
                    assert record.pack is not None
                    self.gather(record, record.pack)

        for turn in range(TurnMover.OPEN):
            gather_for(turn)
        mover = self.mover(sink, plan.turns, crcs=self.want_crcs)
        with closing(mover):
            for turn, own in enumerate(plan.written):
                moved = mover.wait()
                moved.require_read(plan.turns[turn].moves)
                gather_for(turn + TurnMover.OPEN)
                mover.release()
                self.add_headers(own, moved)
                self.write_headers(sink)
        self.write_headers(sink)
        self.done += sum(record.plan.raw_size for record in records)

    def mover(
        self,
        sink: Commit,
        turns: Sequence[Turn],
        *,
        crcs: bool = False,
        open_turns: int = TurnMover.OPEN,
        hashed: bytearray | None = None,
    ) -> TurnMover:
        """What moves these turns into the file."""
        return TurnMover(
            turns,
            sink=sink.fd,
            sink_direct=sink.direct_fd,
            threads=self.threads,
            crcs=crcs,
            progress=self.report if self.progress is not None else None,
            open_turns=open_turns,
            hashed=hashed,
            tally=sink.tally.native if sink.tally is not None else None,
        )

    def add_headers(self, records: list[RecordToWrite], moved: Moved) -> None:
        """The headers of records whose payloads were moved may be written now."""
        at = 0
        for number, record in enumerate(records):
            end = at + count_leaves(record.plan.raw_size) * 8
            leaves = moved.leaves[at:end]
            at = end
            if moved.crcs and not record.is_pack:
                self.crcs[record.plan.storages[0].storage] = moved.crcs[number]
            with collector_paused():
                self.add_header(record, raw_chunk_table(record.plan.raw_size, leaves), leaves)
            record.pack = None

    def write_supplied(self, sink: Commit, records: list[RecordToWrite], supply: Supply) -> None:
        """Write the payloads that the supply brings as they are, each header once its payload is there.

        While some turns are written, the supply brings the next one.
        """
        with supply.deliver([record.plan for record in records]) as brought:
            plan = SuppliedTurns(brought, records)
            mover = self.mover(sink, plan.turns, open_turns=plan.open_turns, hashed=plan.hashed)
            with closing(mover):
                for turn in range(len(plan.turns)):
                    moved = mover.wait()
                    brought.release()
                    plan.bring()
                    mover.release()
                    for record, leaves in plan.finished(turn, moved):
                        self.add_header(record, raw_chunk_table(record.plan.raw_size, leaves), leaves)
                    self.write_headers(sink)
        self.done += sum(record.plan.raw_size for record in records)

    def write_in_order(self, sink: Upload) -> None:
        """Write all records from the first byte to the last, none encoded."""
        sent = send_records(
            sink,
            self.records,
            self.content,
            self.gather,
            threads=self.threads,
            want_crcs=self.want_crcs,
            progress=self.report,
        )
        with closing(sent):
            for record, found in sent:
                if not record.is_pack:
                    self.crcs[record.plan.storages[0].storage] = found.crc
                self.add_header(record, raw_chunk_table(record.plan.raw_size, found.leaves), found.leaves)
                self.write_headers(sink)

    def write_encoded(self, sink: Commit | Upload, codec_id: int, codec: Codec) -> None:
        """Write all records with encoded chunks, one after the other; sizes are known only then."""
        with Pieces(self.content, self.records, self.gather) as pieces:
            for record in self.records:
                record.offset = self.end
                payload = encode_record(
                    record,
                    pieces.of(record),
                    self.numbers_of(record),
                    codec_id=codec_id,
                    codec=codec,
                    write=sink.write,
                    threads=self.threads,
                    want_crc=self.want_crcs and not record.is_pack,
                    progress=self.report,
                )
                self.done += record.plan.raw_size
                self.add_encoded(record, payload)
                self.write_headers(sink)

    def write_planes(self, sink: Commit) -> None:
        """The same for the codec planes in the native core: while some records are written, the next are encoded."""
        with Pieces(self.content, self.records, self.gather) as pieces:
            mover = PlanesMover(
                sink.fd,
                sink.direct_fd,
                self.first_offset,
                raw_size=sum(record.plan.raw_size for record in self.records),
                threads=self.threads,
                want_crcs=self.want_crcs,
                progress=self.progress,
            )
            with closing(mover):
                for record in self.records:
                    mover.add(record, pieces.of(record), self.numbers_of(record))
                    if mover.under_way > BATCH:
                        # Half of it: many headers are written at once, and the threads have enough to do meanwhile.
                        while mover.under_way > BATCH // 2 and (taken := mover.take()):
                            self.add_encoded(*taken)
                        self.write_headers(sink)
                while taken := mover.take():
                    self.add_encoded(*taken)
        self.write_headers(sink)

    def numbers_of(self, record: RecordToWrite) -> RecordNumbers:
        return RecordNumbers(record.plan.storages, self.entries[record.number])

    def add_encoded(self, record: RecordToWrite, payload: EncodedPayload) -> None:
        """The encoded payload of a record is written, behind those of all before it: so may its header be."""
        if self.want_crcs and not record.is_pack:
            self.crcs[record.plan.storages[0].storage] = payload.crc
        record.offset = self.end
        record.pack = None
        self.add_header(record, payload.chunks, payload.leaves)

    def add_header(self, record: RecordToWrite, chunks: list[Chunk], leaves: bytes | memoryview) -> None:
        """The payload of a record is written: so may its header be, once those of all records before it are made."""
        self.waiting[record.number] = (record, chunks, leaves)
        while len(self.headers) in self.waiting:
            self.add_next_header(*self.waiting.pop(len(self.headers)))

    def add_next_header(self, record: RecordToWrite, chunks: list[Chunk], leaves: bytes | memoryview) -> None:
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
        self.headers.append((record.offset, block))
        self.end = max(self.end, align(record.payload_offset + sum(chunk.stored_size for chunk in chunks)))

    def write_headers(self, sink: Commit | Upload) -> None:
        """Write the headers that were added since the last time."""
        sink.write_blocks(self.headers[self.written :], self.threads)
        self.written = len(self.headers)


def write_checkpoint(
    content: Content,
    path: str | os.PathLike[str],
    *,
    codec: str,
    durable: bool,
    threads: int,
    progress: Progress | None = None,
    check_crcs: CheckCrcs | None = None,
    mode: int = 0o666,
    tally: Tally | None = None,
) -> None:
    """Write ``content`` to ``path``, all of it or nothing.

    Args:
        content: What to write.
        path: The checkpoint file; an existing one is replaced in the end.
        codec: ``"none"``, ``"planes"``, ``"zstd"`` or ``"zstd:LEVEL"``.
        durable: Return only when the file survives a power cut.
        threads: Worker threads.
        progress: Called with the raw bytes done so far.
        check_crcs: Called before the commit with the CRC-32 of every storage,
            computed from the very bytes that were written.
        mode: See `Commit`.
        tally: Told of all that is written, if nothing is encoded. Parity inside the file has its own.

    Raises:
        OutOfSpaceError, CheckpointIOError: The old file, if any, is untouched.
        UsageError: Unknown codec.
    """
    codec_id, encoder = codec_for_writing(codec)
    with collector_paused():
        writer = _Writer(content, threads=threads, progress=progress, want_crcs=check_crcs is not None)
    tallied = raw_size = writer.place_raw()
    if (parity := content.parity) is not None:
        tally, tallied = parity.tally, writer.covered(raw_size)
        raw_size += parity.size(tallied)
    # Encoded sizes are not known; nothing is reserved for them beyond the metadata.
    reserve = raw_size if encoder is None else writer.first_offset + writer.tail_size
    sink: Commit | Upload
    if isinstance(path, RemotePath):
        sink = Upload(path, most=raw_size)
    else:
        sink = Commit(path, durable=durable, reserve=reserve, mode=mode, tally=tally)
    with sink:
        if encoder is None and isinstance(sink, Commit):
            sink.preallocate(raw_size)
            if tally is not None:
                tally.begin(tallied)
        elif codec_id == CODEC_PLANES and isinstance(sink, Commit) and sink.direct_fd >= 0:
            sink.preallocate_if_possible(raw_size)
        extent = Extent(SUPERBLOCK_SIZE, len(writer.manifest))
        sink.write(0, encode_superblock(extent, block_digest(writer.manifest)))
        sink.write(SUPERBLOCK_SIZE, writer.manifest)
        with typed_os_errors(path):
            if codec_id == CODEC_PLANES and isinstance(sink, Commit):
                writer.write_planes(sink)
            elif encoder is not None:
                writer.write_encoded(sink, codec_id, encoder)
            elif isinstance(sink, Upload):
                writer.write_in_order(sink)
            else:
                # What comes late is written last: then no header waits for long.
                writer.write_raw(sink, [record for record in writer.records if not content.covered(record.plan)])
                supplied = [record for record in writer.records if content.covered(record.plan)]
                if content.supply is not None and supplied:
                    writer.write_supplied(sink, supplied, content.supply)
        if check_crcs is not None:
            check_crcs(writer.crcs)
        pieces = None
        if parity is not None and isinstance(sink, Commit):
            if encoder is not None:
                sink.preallocate(writer.end)  # What fills up the last payload is not written, and will be read.
            pieces = partial(parity.pieces, sink.fd, sink.path, threads=threads)
        sink.finish(write_tail(sink.write, writer.end, writer.manifest, writer.headers, content.sections, pieces))

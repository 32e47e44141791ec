"""Encoding the payload of one record, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import NamedTuple

import xxhash

from fastckpt import _core
from fastckpt.codec.numbers import Numbers
from fastckpt.codec.registry import Codec
from fastckpt.constants import CHUNK_SIZE, CODEC_NONE
from fastckpt.fckpt.numbers import RecordNumbers
from fastckpt.fckpt.pieces import Piece
from fastckpt.fckpt.turns import RecordToWrite
from fastckpt.io.pool import map_in_order
from fastckpt.io.transfer import MEMORY, Move, Progress, transfer
from fastckpt.layout.records import Chunk, count_chunks, raw_chunk_digest


class EncodedPayload(NamedTuple):
    """What encoding a record's raw bytes gave: its chunk table, leaf digests and CRC-32 (0 if not asked for)."""

    chunks: list[Chunk]
    leaves: bytes
    crc: int


class _EncodedChunk(NamedTuple):
    codec: int
    stored: bytes | memoryview
    digest: int
    leaves: bytes
    crc: int
    raw_size: int


def read_exactly(source: int, origin: int, raw: memoryview) -> None:
    """Fill ``raw`` from an offset in a file, or, with ``source`` MEMORY, from an address."""
    move = Move(origin, _core.address(raw), len(raw))
    transfer([move], source=source, sink=MEMORY, threads=1, leaves=False).require_read([move])


def encode_record(
    record: RecordToWrite,
    pieces: Iterable[Piece],
    numbers: RecordNumbers,
    *,
    codec_id: int,
    codec: Codec,
    write: Callable[[int, bytes | memoryview], None],
    threads: int,
    want_crc: bool,
    progress: Progress,
) -> EncodedPayload:
    """Encode the payload of a record and hand the stored bytes to ``write(offset in the file, data)``.

    Args:
        record: Which; its offset is known.
        pieces: Its raw bytes.
        numbers: Which numbers they are.
        codec_id: See `encode_payload`, as for all that follow.
        codec: Encodes one chunk.
        write: Takes the stored bytes.
        threads: Worker threads.
        want_crc: Whether the CRC-32 of the raw bytes is wanted.
        progress: Called with the raw bytes of the record done so far.
    """
    chunks: list[Chunk] = []
    leaves = bytearray()
    crc = at = raw_at = 0
    for piece in pieces:
        encoded = encode_payload(
            piece.source,
            piece.origin,
            piece.size,
            codec_id=codec_id,
            codec=codec,
            numbers=lambda start, size, base=raw_at: numbers.of_chunk(base + start, size),  # type: ignore[misc]
            write=lambda offset, data, base=record.payload_offset + at: write(base + offset, data),  # type: ignore[misc]
            threads=threads,
            want_crc=want_crc,
            progress=lambda done, base=raw_at: progress(base + done),  # type: ignore[misc]
        )
        crc = _core.crc32_combine(crc, encoded.crc, piece.size) if want_crc else 0
        chunks += [chunk._replace(offset=at + chunk.offset) for chunk in encoded.chunks] if at else encoded.chunks
        leaves += encoded.leaves if piece.leaves is None else piece.leaves
        at += sum(chunk.stored_size for chunk in encoded.chunks)
        raw_at += piece.size
    return EncodedPayload(chunks, bytes(leaves), crc)


def encode_payload(
    source: int,
    origin: int,
    raw_size: int,
    *,
    codec_id: int,
    codec: Codec,
    numbers: Callable[[int, int], Numbers],
    write: Callable[[int, bytes | memoryview], None],
    threads: int,
    want_crc: bool,
    progress: Progress | None,
) -> EncodedPayload:
    """Encode ``raw_size`` bytes and hand the stored bytes to ``write(offset in payload, data)`` in order.

    Args:
        source: File descriptor the raw bytes come from, or MEMORY.
        origin: Where they begin there.
        raw_size: How many.
        codec_id: Id of ``codec``.
        codec: Encodes one chunk; a chunk that does not shrink is stored as it is.
        numbers: Given a start and a size in the raw bytes, says which numbers these are.
        write: Takes the stored bytes.
        threads: Worker threads.
        want_crc: Whether the CRC-32 of the raw bytes is wanted.
        progress: Called with the raw bytes done so far.
    """

    # Memory that threads have done with: the first touch of fresh pages takes as long as the copy itself.
    spare: SimpleQueue[memoryview] = SimpleQueue()

    def encode(chunk: int) -> _EncodedChunk:
        size = min(CHUNK_SIZE, raw_size - chunk * CHUNK_SIZE)
        try:
            memory = spare.get_nowait()
        except Empty:
            memory = memoryview(bytearray(min(CHUNK_SIZE, raw_size)))
        # A copy: what is still being changed would not be what its digests say.
        raw = memory[:size]
        read_exactly(source, origin + chunk * CHUNK_SIZE, raw)
        leaves = _core.leaf_digests(raw)
        crc = _core.crc32(raw) if want_crc else 0
        frame = codec.encode(raw, numbers(chunk * CHUNK_SIZE, size))
        if frame is None:
            return _EncodedChunk(CODEC_NONE, raw, raw_chunk_digest(leaves), leaves, crc, size)
        spare.put(memory)
        return _EncodedChunk(codec_id, frame, xxhash.xxh3_64_intdigest(frame), leaves, crc, size)

    chunks: list[Chunk] = []
    leaves = bytearray()
    crc = at = done = 0
    for encoded in map_in_order(encode, range(count_chunks(raw_size)), threads=threads):
        write(at, encoded.stored)
        chunks.append(Chunk(at, len(encoded.stored), encoded.codec, encoded.digest))
        leaves += encoded.leaves
        crc = _core.crc32_combine(crc, encoded.crc, encoded.raw_size) if want_crc else 0
        at += len(encoded.stored)
        done += encoded.raw_size
        if progress is not None:
            progress(done)
    return EncodedPayload(chunks, bytes(leaves), crc)

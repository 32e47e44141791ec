"""Encoding with planes and writing in one go, in the native core: `encoding` does the same one chunk at a time."""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from fastckpt import _core
from fastckpt.codec.numbers import BLOCK
from fastckpt.constants import CHUNK_SIZE, CODEC_NONE, CODEC_PLANES
from fastckpt.errors import CheckpointIOError
from fastckpt.fckpt.encoding import EncodedPayload
from fastckpt.fckpt.numbers import RecordNumbers
from fastckpt.fckpt.pieces import Piece
from fastckpt.fckpt.turns import RecordToWrite
from fastckpt.io.transfer import Progress
from fastckpt.layout.records import Chunk, count_leaves, raw_chunk_digest

_BLOCKS: Final = CHUNK_SIZE // BLOCK


class _Chunk(NamedTuple):
    """Raw bytes of a chunk, and where they were read."""

    origin: int
    size: int


class _Written(NamedTuple):
    """What the native core says of a chunk: its row, column by column."""

    offset: int
    stored_size: int
    encoded: int
    digest: int
    crc: int
    read: int
    error: int


class _Waiting(NamedTuple):
    record: RecordToWrite
    chunks: list[_Chunk]
    leaves: list[bytes | None]
    """Of each piece, if they are known."""
    pieces: list[int]
    """Bytes of each."""


class PlanesMover:
    """Payloads of records on their way into a file, one behind the other, each with room for its header before it.

    Args:
        sink: File descriptor.
        sink_direct: The same file opened with O_DIRECT, or -1.
        offset: Where the first record shall begin.
        raw_size: Raw bytes of all records together.
        threads: Worker threads: more than CPUs where the file is written past the page cache.
        want_crcs: Whether the CRC-32 of the raw bytes of each record is wanted.
        progress: Called with the raw bytes done so far, of all records.

    Attributes:
        under_way: Raw bytes of the records that were given and not taken.
    """

    def __init__(
        self,
        sink: int,
        sink_direct: int,
        offset: int,
        *,
        raw_size: int,
        threads: int,
        want_crcs: bool,
        progress: Progress | None,
    ) -> None:
        self.under_way = 0
        threads = min(threads, raw_size // CHUNK_SIZE + 1)
        self._native = _core.PlanesWriter(sink, sink_direct, offset=offset, threads=threads, crcs=want_crcs)
        self._want_crcs = want_crcs
        self._progress = progress
        self._skip = 0  # Room for the headers of the records since the last chunk.
        self._waiting: deque[_Waiting] = deque()

    def add(self, record: RecordToWrite, pieces: Iterable[Piece], numbers: RecordNumbers) -> None:
        """Have a record encoded and written behind the others. Its pack must stay until it is taken."""
        self._skip += record.header_size
        waiting = _Waiting(record, [], [], [])
        self._waiting.append(waiting)
        at = 0
        for piece in pieces:
            rows, kinds = array("Q"), bytearray()
            for start in range(0, piece.size, CHUNK_SIZE):
                size = min(CHUNK_SIZE, piece.size - start)
                here = numbers.of_chunk(at + start, size)
                rows.extend((piece.origin + start, size, here.row_length, here.phase, self._skip))
                kinds += here.kinds.ljust(_BLOCKS, b"\0")
                waiting.chunks.append(_Chunk(piece.origin + start, size))
                self._skip = 0
            waiting.leaves.append(piece.leaves)
            waiting.pieces.append(piece.size)
            self._native.append(piece.source, rows, kinds)
            at += piece.size
            self.under_way += piece.size
            if piece.fleeting:
                self._native.wait_read(self._progress)

    def take(self) -> tuple[RecordToWrite, EncodedPayload] | None:
        """The oldest record, once its payload is in the file; None when there is none.

        Raises:
            CheckpointIOError: Its raw bytes could not be read.
            OSError: Writing failed.
            KeyboardInterrupt: Within 0.2 s of Ctrl-C. The threads are still there then: `close`.
        """
        if not self._waiting:
            return None
        record, raw, known, pieces = self._waiting.popleft()
        rows, hashed = self._native.take(len(raw), self._progress)
        columns = len(_Written._fields)
        numbers = memoryview(rows).cast("Q").tolist()
        chunks = []
        crc = leaf = at = 0
        for number, (origin, size) in enumerate(raw):
            written = _Written(*numbers[number * columns : (number + 1) * columns])
            if written.read != size:
                reason = os.strerror(written.error) if written.error else "the file ends there"
                raise CheckpointIOError(
                    f"cannot read the source: {reason}", errno=written.error or None, offset=origin + written.read
                )
            end = leaf + count_leaves(size) * 8
            digest = written.digest if written.encoded else raw_chunk_digest(hashed[leaf:end])
            codec = CODEC_PLANES if written.encoded else CODEC_NONE
            chunks.append(Chunk(at, written.stored_size, codec, digest))
            if self._want_crcs:
                crc = _core.crc32_combine(crc, written.crc, size)
            at += written.stored_size
            leaf = end
            self.under_way -= size
        return record, EncodedPayload(chunks, _preferred(known, pieces, hashed), crc)

    def close(self) -> None:
        """Stop; no thread is left when this returns."""
        self._native.close()


def _preferred(known: list[bytes | None], pieces: list[int], hashed: bytes) -> bytes:
    """The leaf digests of pieces: known ones, which also prove the way to memory, or those taken here."""
    leaves = bytearray()
    for own, size in zip(known, pieces, strict=True):
        leaves += hashed[len(leaves) : len(leaves) + count_leaves(size) * 8] if own is None else own
    return bytes(leaves)

"""Encoding with planes and writing in one go, in the native core: `encoding` does the same one chunk at a time."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from fastckpt import _core
from fastckpt.codec.numbers import BLOCK
from fastckpt.constants import CHUNK_SIZE, CODEC_NONE, CODEC_PLANES
from fastckpt.fckpt.encoding import EncodedPayload
from fastckpt.fckpt.numbers import RecordNumbers
from fastckpt.fckpt.pieces import Piece
from fastckpt.fckpt.turns import RecordToWrite
from fastckpt.io.transfer import Progress, unread_source
from fastckpt.layout.records import Chunk, count_leaves, raw_chunk_digest

_BLOCKS: Final = CHUNK_SIZE // BLOCK


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
    pieces: list[Piece]


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
        waiting = _Waiting(record, [])
        self._waiting.append(waiting)
        at = 0
        for piece in pieces:
            rows, kinds = array("Q"), bytearray()
            for start, size in _chunks_of(piece):
                here = numbers.of_chunk(at + start, size)
                rows.extend((piece.origin + start, size, here.row_length, here.phase, self._skip))
                kinds += here.kinds.ljust(_BLOCKS, b"\0")
                self._skip = 0
            waiting.pieces.append(piece)
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
        record, pieces = self._waiting.popleft()
        raw = [(piece.origin + start, size) for piece in pieces for start, size in _chunks_of(piece)]
        rows, hashed = self._native.take(len(raw), self._progress)
        columns = len(_Written._fields)
        numbers = memoryview(rows).cast("Q").tolist()
        chunks = []
        crc = leaf = at = 0
        for number, (origin, size) in enumerate(raw):
            written = _Written(*numbers[number * columns : (number + 1) * columns])
            if written.read != size:
                raise unread_source(written.error, origin + written.read)
            end = leaf + count_leaves(size) * 8
            digest = written.digest if written.encoded else raw_chunk_digest(hashed[leaf:end])
            codec = CODEC_PLANES if written.encoded else CODEC_NONE
            chunks.append(Chunk(at, written.stored_size, codec, digest))
            if self._want_crcs:
                crc = _core.crc32_combine(crc, written.crc, size)
            at += written.stored_size
            leaf = end
            self.under_way -= size
        return record, EncodedPayload(chunks, _preferred(pieces, hashed), crc)

    def close(self) -> None:
        """Stop; no thread is left when this returns."""
        self._native.close()


def _chunks_of(piece: Piece) -> Iterator[tuple[int, int]]:
    """Where each chunk begins in a piece, and its bytes."""
    for start in range(0, piece.size, CHUNK_SIZE):
        yield start, min(CHUNK_SIZE, piece.size - start)


def _preferred(pieces: list[Piece], hashed: bytes) -> bytes:
    """The leaf digests of pieces: known ones, which also prove the way to memory, or those taken here."""
    leaves = bytearray()
    for piece in pieces:
        end = len(leaves) + count_leaves(piece.size) * 8
        leaves += hashed[len(leaves) : end] if piece.leaves is None else piece.leaves
    return bytes(leaves)

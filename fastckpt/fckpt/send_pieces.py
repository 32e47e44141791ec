"""The bytes of records on their way to an object, which is written from its first byte to its last."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from fastckpt import _core
from fastckpt.constants import LEAF_DIGEST_SIZE, LEAF_SIZE
from fastckpt.errors import CheckpointIOError
from fastckpt.fckpt.content import Content
from fastckpt.fckpt.pieces import Piece, Pieces
from fastckpt.fckpt.turns import RecordToWrite
from fastckpt.io.transfer import MEMORY, NOWHERE, Move, Progress, transfer
from fastckpt.io.upload import Upload


class Hashed(NamedTuple):
    """What the header of a record says of its raw bytes, and their CRC-32 if that was asked for."""

    leaves: bytes
    crc: int


def send_records(
    sink: Upload,
    records: Sequence[RecordToWrite],
    content: Content,
    gather: Callable[[RecordToWrite, memoryview], None],
    *,
    threads: int,
    want_crcs: bool,
    progress: Progress,
) -> Generator[tuple[RecordToWrite, Hashed], None, None]:
    """Send records, none encoded. Yields each when its header must be written.

    That stands before its payload, and has the digests of it. Room is left for it while the payload is copied and
    hashed in one pass; a payload that is too large for that is hashed first. Of those, what lies on a device is
    brought twice, and hashed before all others: it comes in turns that do not wait.

    Args:
        sink: Where to.
        records: In their order; a pack is dropped when it was sent.
        content: Where their bytes are.
        gather: See `Pieces`.
        threads: Worker threads.
        want_crcs: Compute the CRC-32 of each.
        progress: Called with the bytes sent so far.

    Raises:
        CheckpointIOError: A large payload was changed between its two passes.
    """
    large = {record.number for record in records if record.plan.raw_size > sink.most_behind_room}
    twice = [record for record in records if record.number in large and content.covered(record.plan)]
    with Pieces(content, twice, gather) as pieces:
        known = {record.number: _hash(pieces.of(record), threads) for record in twice}
    done = 0

    def report(count: int) -> None:
        progress(done + count)

    with Pieces(content, records, gather) as pieces:
        for record in records:
            own: Iterable[Piece] = pieces.of(record)
            if record.number in large:
                if record.number not in known:
                    own = list(own)
                    known[record.number] = _hash(own, threads)
                found = known.pop(record.number)
                yield record, found
                _require_unchanged(found.crc, _send(sink, record, own, threads, report))
            else:
                sink.leave_room(record.offset, record.header_size)
                yield record, _send_and_hash(sink, record, own, threads, report, want_crc=want_crcs)
            done += record.plan.raw_size
            record.pack = None


def _hash(pieces: Iterable[Piece], threads: int) -> Hashed:
    """Read the pieces of a record once, ahead of `_send`."""
    leaves = bytearray()
    crc = 0
    for piece in pieces:
        move = Move(piece.origin, 0, piece.size)
        moved = transfer([move], source=piece.source, sink=NOWHERE, threads=threads, crcs=True)
        moved.require_read([move])
        leaves += moved.leaves if piece.leaves is None else piece.leaves
        crc = _core.crc32_combine(crc, moved.crcs[0], piece.size)
    return Hashed(bytes(leaves), crc)


def _send_and_hash(
    sink: Upload, record: RecordToWrite, pieces: Iterable[Piece], threads: int, progress: Progress, *, want_crc: bool
) -> Hashed:
    """Copy the pieces of a record into the parts that are sent, and hash them in the same pass."""
    leaves = bytearray()
    crc = at = 0
    for piece in pieces:
        own, own_crc = _copy_and_hash(sink, record.payload_offset + at, piece, threads, want_crc=want_crc)
        leaves += own
        crc = _core.crc32_combine(crc, own_crc, piece.size)
        at += piece.size
        progress(at)
    return Hashed(bytes(leaves), crc)


def _copy_and_hash(sink: Upload, offset: int, piece: Piece, threads: int, *, want_crc: bool) -> Hashed:
    leaves, cut = bytearray(), bytearray()
    crc = at = 0
    while at < piece.size:
        room = sink.memory(offset + at, piece.size - at)
        end = at + len(room)
        # A leaf that two parts share is hashed when both of them have their bytes of it.
        before = min(-at % LEAF_SIZE, len(room))
        behind = end % LEAF_SIZE if before < len(room) and end < piece.size else 0
        edges = (0, before, len(room) - behind, len(room))
        moves = [Move(piece.origin + at + a, _core.address(room) + a, b - a) for a, b in pairwise(edges)]
        moved = transfer(
            moves, source=piece.source, sink=MEMORY, threads=threads, leaves=piece.leaves is None, crcs=want_crc
        )
        moved.require_read(moves)
        for move, own in zip(moves, moved.crcs, strict=False):
            crc = _core.crc32_combine(crc, own, move.size)
        if piece.leaves is None:
            cut += room[:before]
            if before and (end == piece.size or not (at + before) % LEAF_SIZE):
                leaves += _core.leaf_digests(cut)
                cut.clear()
            first, last = before > 0, moved.leaves.nbytes // LEAF_DIGEST_SIZE - (behind > 0)
            leaves += moved.leaves[first * LEAF_DIGEST_SIZE : last * LEAF_DIGEST_SIZE]
            cut += room[len(room) - behind :]
        at = end
    return Hashed(bytes(leaves) if piece.leaves is None else piece.leaves, crc)


def _send(sink: Upload, record: RecordToWrite, pieces: Iterable[Piece], threads: int, progress: Progress) -> int:
    """Copy the pieces of a record into the parts that are sent; their CRC-32 as they were now."""
    crc = at = 0
    for piece in pieces:
        end = at + piece.size
        origin = piece.origin
        while at < end:
            room = sink.memory(record.payload_offset + at, end - at)
            move = Move(origin, _core.address(room), len(room))
            moved = transfer([move], source=piece.source, sink=MEMORY, threads=threads, leaves=False, crcs=True)
            moved.require_read([move])
            crc = _core.crc32_combine(crc, moved.crcs[0], len(room))
            origin += len(room)
            at += len(room)
            progress(at)
    return crc


def _require_unchanged(hashed: int, sent: int) -> None:
    """Raise CheckpointIOError if what was sent is not what the header in front of it says."""
    if hashed != sent:
        raise CheckpointIOError(
            "what is saved was changed meanwhile, by another thread, stream or process; nothing was saved",
            next_step="save when nothing changes it, or a copy of it: fastckpt.save_async takes one",
        )

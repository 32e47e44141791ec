"""The bytes of records on their way to an object, which is written from its first byte to its last."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fastckpt import _core
from fastckpt.errors import CheckpointIOError
from fastckpt.fckpt.pieces import Piece
from fastckpt.fckpt.turns import RecordToWrite
from fastckpt.io.transfer import MEMORY, NOWHERE, Move, Progress, transfer
from fastckpt.io.upload import Upload


class Hashed(NamedTuple):
    """What the header of a record says of its raw bytes, and their CRC-32."""

    leaves: bytes
    crc: int


def hash_pieces(pieces: Iterable[Piece], threads: int) -> Hashed:
    """Read the pieces of a record once, ahead of `send_pieces`."""
    leaves = bytearray()
    crc = 0
    for piece in pieces:
        move = Move(piece.origin, 0, piece.size)
        moved = transfer([move], source=piece.source, sink=NOWHERE, threads=threads, crcs=True)
        moved.require_read([move])
        leaves += moved.leaves if piece.leaves is None else piece.leaves
        crc = _core.crc32_combine(crc, moved.crcs[0], piece.size)
    return Hashed(bytes(leaves), crc)


def send_pieces(sink: Upload, record: RecordToWrite, pieces: Iterable[Piece], threads: int, progress: Progress) -> int:
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


def require_unchanged(hashed: int, sent: int) -> None:
    """Raise CheckpointIOError if what was sent is not what the header in front of it says."""
    if hashed != sent:
        raise CheckpointIOError(
            "what is saved was changed meanwhile, by another thread, stream or process; nothing was saved",
            next_step="save when nothing changes it, or a copy of it: fastckpt.save_async takes one",
        )

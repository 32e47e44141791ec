"""Where ranges of a remote object go: copied, and summed in the same pass."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from threading import Lock

from fastckpt import _core
from fastckpt.constants import LEAF_DIGEST_SIZE, LEAF_SIZE
from fastckpt.io.ranges import Piece
from fastckpt.io.transfer import MEMORY, Fault, Move, transfer
from fastckpt.layout.records import count_leaves


class Landing:
    """Where the pieces of ranges go: copied, and summed in the same pass.

    Args:
        moves: What is wanted.
        size: Bytes of the object: what of a move is not in it is one of the `faults`.
        sink: See `fastckpt.io.transfer.transfer`.
        leaves: Takes the leaf digests, those of a move from its ``first_leaf`` on; None computes none.
        crcs: Takes the CRC-32 of each move; None computes none.

    Attributes:
        inside: The moves, as far as they are in the object.
        faults: What is not.
        done: Bytes that have landed.
    """

    def __init__(
        self,
        moves: Sequence[Move],
        size: int,
        *,
        sink: int = MEMORY,
        sink_direct: int = -1,
        first_leaf: Sequence[int],
        leaves: bytearray | None,
        crcs: array[int] | None,
    ) -> None:
        self.inside = [move._replace(size=max(0, min(move.size, size - move.source))) for move in moves]
        self.faults = [
            Fault(number, there.size, move.size - there.size, 0)
            for number, (move, there) in enumerate(zip(moves, self.inside, strict=True))
            if there.size < move.size
        ]
        self.done = 0
        self._sink, self._sink_direct = sink, sink_direct
        self._first_leaf, self._leaves, self._crcs = first_leaf, leaves, crcs
        self._sums: list[dict[int, tuple[int, int]]] = [{} for _ in moves] if crcs is not None else []
        self._summed = [0] * len(self._sums)
        self._lock = Lock()

    def land(self, data: memoryview, pieces: Sequence[Piece], *, threads: int = 1, hashed: bool = True) -> None:
        """Take pieces of a range. Can be called on several threads at a time, in any order."""
        base = _core.address(data)
        moved = transfer(
            [Move(base + p.offset, self.inside[p.move].sink + p.start, p.size) for p in pieces],
            source=MEMORY,
            sink=self._sink,
            sink_direct=self._sink_direct,
            threads=threads,
            leaves=self._leaves is not None and hashed,
            crcs=self._crcs is not None,
        )
        at = 0
        for number, piece in enumerate(pieces):
            if moved.leaves.nbytes and self._leaves is not None:
                begin = (self._first_leaf[piece.move] + piece.start // LEAF_SIZE) * LEAF_DIGEST_SIZE
                size = count_leaves(piece.size) * LEAF_DIGEST_SIZE
                self._leaves[begin : begin + size] = moved.leaves[at : at + size]
                at += size
            with self._lock:
                self.done += piece.size
                if self._crcs is not None:
                    self._combine(piece, moved.crcs[number], self._crcs)

    def _combine(self, piece: Piece, crc: int, crcs: array[int]) -> None:
        """A CRC-32 goes to that of its move once all before it have come."""
        waiting = self._sums[piece.move]
        waiting[piece.start] = crc, piece.size
        while (following := waiting.pop(self._summed[piece.move], None)) is not None:
            crcs[piece.move] = _core.crc32_combine(crcs[piece.move], *following)
            self._summed[piece.move] += following[1]

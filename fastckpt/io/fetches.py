"""Ranges of a remote object on their way: asked for ahead, taken in order, and landed where they belong."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import TypeAlias

from fastckpt import _core
from fastckpt.constants import LEAF_DIGEST_SIZE, LEAF_SIZE
from fastckpt.io.ranges import Piece, Range, ranges_of, without_gaps
from fastckpt.io.slots import SlotRequest
from fastckpt.io.transfer import MEMORY, Fault, Move, default_threads, transfer
from fastckpt.layout.blocks import Extent
from fastckpt.remote.store import Pending

Get: TypeAlias = Callable[[int, int], Pending]
"""Begins to fetch bytes ``[start, stop)`` of an object."""


class Fetches:
    """Ranges in order, of which at most ``ahead`` are under way or wait behind the one taken. Iterate over it once."""

    def __init__(self, get: Get, ranges: Sequence[Range], *, ahead: int) -> None:
        self._get = get
        self._ranges = deque(ranges)
        self._ahead = max(ahead, 1)
        self._pending: deque[tuple[Range, Pending]] = deque()

    def __iter__(self) -> Iterator[tuple[Range, memoryview]]:
        self._begin()
        while self._pending:
            found, pending = self._pending[0]
            data = pending.result()
            self._pending.popleft()
            self._begin()  # What has come is landed while that is under way.
            yield found, data
            del data

    def _begin(self) -> None:
        while self._ranges and len(self._pending) < self._ahead:
            self._pending.append((self._ranges[0], self._get(self._ranges[0].start, self._ranges[0].stop)))
            self._ranges.popleft()

    def close(self) -> None:
        """Stop what is under way."""
        self._ranges.clear()
        while self._pending:
            self._pending.popleft()[1].cancel()


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
        self._threads = min(default_threads(), 4)

    def land(self, data: memoryview, pieces: Sequence[Piece], *, hashed: bool = True) -> None:
        """Take pieces of a range. Those of a move must come in their order."""
        base = _core.address(data)
        moved = transfer(
            [Move(base + p.offset, self.inside[p.move].sink + p.start, p.size) for p in pieces],
            source=MEMORY,
            sink=self._sink,
            sink_direct=self._sink_direct,
            threads=self._threads,
            leaves=self._leaves is not None and hashed,
            crcs=self._crcs is not None,
        )
        at = 0
        for number, piece in enumerate(pieces):
            self.done += piece.size
            if moved.leaves.nbytes and self._leaves is not None:
                begin = (self._first_leaf[piece.move] + piece.start // LEAF_SIZE) * LEAF_DIGEST_SIZE
                size = -(-piece.size // LEAF_SIZE) * LEAF_DIGEST_SIZE
                self._leaves[begin : begin + size] = moved.leaves[at : at + size]
                at += size
            if self._crcs is not None:
                crc = moved.crcs[number]
                before = self._crcs[piece.move]
                self._crcs[piece.move] = _core.crc32_combine(before, crc, piece.size) if piece.start else crc


class RemoteSlots:
    """See `fastckpt.io.slots.SlotReads`: what is under way is in memory of its own, and lands when it is waited for."""

    def __init__(self, get: Get, wanted: SlotRequest, size: int, *, ahead: int) -> None:
        rows = wanted.rows
        moves = [Move(*rows[at : at + 3]) for at in range(0, len(rows), 4)]
        self._landing = Landing(moves, size, first_leaf=rows[3::4], leaves=wanted.leaves, crcs=wanted.crcs)
        self._wanted = wanted
        self._fetches = Fetches(get, ranges_of(enumerate(self._landing.inside), size), ahead=ahead)
        self._arriving = iter(self._fetches)
        self._pieces: deque[Piece] = deque()
        self._data = memoryview(b"")

    def wait(self, turn: int, /) -> list[tuple[int, int, int, int]]:
        end = self._wanted.ends[turn]
        begin = self._wanted.ends[turn - 1] if turn else 0
        left = sum(move.size for move in self._landing.inside[begin:end])
        while left:
            if not self._pieces:
                found, self._data = next(self._arriving)
                self._pieces.extend(found.pieces)
            here = []
            while self._pieces and self._pieces[0].move < end:
                here.append(self._pieces.popleft())
            self._landing.land(self._data, here, hashed=bool(self._wanted.hashed[turn]))
            left -= sum(piece.size for piece in here)
        return [fault for fault in self._landing.faults if begin <= fault.move < end]

    def release(self) -> None:
        """Nothing waits for a slot: what is read ahead is beside them."""

    def close(self) -> None:
        self._fetches.close()
        self._pieces.clear()
        self._data = memoryview(b"")


class Ahead:
    """Extents that several threads will read, about in this order, in ranges of many of them.

    A range is dropped when each of its extents was read as often as it was named.

    Args:
        get: See `Get`.
        extents: What will be read.
        size: Bytes of the object.
        ahead: Ranges under way at a time.
        dropped: Is given each range that was read, before it is dropped; what lies between two comes with the first.
    """

    def __init__(
        self,
        get: Get,
        extents: Sequence[Extent],
        size: int,
        *,
        ahead: int,
        dropped: Callable[[Range, memoryview], None] | None = None,
    ) -> None:
        moves = [Move(extent.offset, 0, extent.size) for extent in extents]
        self._get = get
        self._ranges = ranges_of(enumerate(moves), size, whole=True)
        if dropped is not None:
            self._ranges = without_gaps(self._ranges)
        self._of = {moves[piece.move]: n for n, found in enumerate(self._ranges) for piece in found.pieces}
        self._left = [len(found.pieces) for found in self._ranges]
        self._arrivals: dict[int, _Arrival] = {}
        self._ahead = max(ahead, 1)
        self._begun = 0
        self._closed = False
        self._dropped = dropped
        self._lock = Lock()

    def read(self, offset: int, size: int) -> memoryview | None:
        """The bytes of an extent; None if it was not named."""
        number = self._of.get(Move(offset, 0, size))
        with self._lock:
            if self._closed:
                from asyncio import CancelledError  # only here: it would slow down the start of every command

                raise CancelledError("what it was read for has ended")
            if number is None or not self._left[number]:
                return None
            while self._begun < min(number + self._ahead, len(self._ranges)):
                found = self._ranges[self._begun]
                self._arrivals[self._begun] = _Arrival(self._get(found.start, found.stop))
                self._begun += 1
            arrival = self._arrivals[number]
            self._left[number] -= 1
        begin = offset - self._ranges[number].start
        data = arrival.data()
        with self._lock:
            if not self._left[number] and self._arrivals.pop(number, None) is not None and self._dropped is not None:
                self._dropped(self._ranges[number], data)
        return data[begin : begin + size]

    def close(self) -> None:
        """Stop what is under way; who waits for it gets an error."""
        with self._lock:
            self._closed = True
            for arrival in self._arrivals.values():
                arrival.cancel()
            self._arrivals.clear()


class _Arrival:
    """A range on its way to several threads."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self._lock = Lock()
        self._data: memoryview | None = None
        self._error: BaseException | None = None

    def data(self) -> memoryview:
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._data is None:
                try:
                    self._data = self._pending.result()
                except BaseException as error:
                    self._error = error
                    raise
            return self._data

    def cancel(self) -> None:
        self._pending.cancel()

"""Filling slots: the bytes of a plan's turns, read ahead of whoever takes them.

A filler starts on all slots at once and refills each as soon as it is
released. What it can tell about bad bytes it says when a turn is waited for.
"""

from __future__ import annotations

import contextlib
import functools
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

import torch

from fastckpt.constants import LEAF_SIZE
from fastckpt.fckpt.bad_ranges import BadRange
from fastckpt.fckpt.payload import EncodedPiece, Reading, Target, encoded_pieces, read_piece
from fastckpt.io.anew import until_right
from fastckpt.io.pool import Pool, Task
from fastckpt.io.residency import is_warm
from fastckpt.io.slots import SlotRequest
from fastckpt.io.source import Source
from fastckpt.io.transfer import MEMORY, Fault, Move
from fastckpt.layout.blocks import Extent
from fastckpt.staging.as_stored import Stretch, stretches_of
from fastckpt.staging.leaves import Leaves
from fastckpt.staging.regions import Part, Piece, Suspect


class Filler(Protocol):
    """Fills slot ``turn % slots`` with the pieces of each turn, in order."""

    def wait(self, turn: int) -> list[Suspect]:
        """Wait until a turn is full; says what of it is bad. KeyboardInterrupt within 0.2 s of Ctrl-C."""

    def release(self) -> None:
        """The slot of the oldest turn may be filled again."""

    def stop_proving(self) -> int:
        """Leave the proof of leaves to others from now on; the first turn that is not proven here any more."""

    def close(self) -> None:
        """Stop; no thread is left when this returns."""


class Row(NamedTuple):
    """One contiguous read: a part of a piece, which begins ``offset`` bytes into the piece's region."""

    piece: Piece
    offset: int
    size: int


class RowFiller:
    """The native threads, and which row each of their results belongs to.

    Attributes:
        rows: The rows of every turn.
        hashed: For each turn, whether its leaves are hashed.
        leaves: Leaf digests of all rows, one after the other; empty if not asked for.
        crcs: CRC-32 of each row; empty if not asked for.
    """

    def __init__(
        self,
        source: Source,
        turns: Sequence[Sequence[Piece]],
        slots: Sequence[torch.Tensor],
        *,
        threads: int,
        leaves: bool = False,
        crcs: bool = False,
    ) -> None:
        extents, ends = array("Q"), array("Q")
        self.rows: list[list[Row]] = []
        leaf_count = row_count = 0
        for turn, pieces in enumerate(turns):
            base = slots[turn % len(slots)].data_ptr()
            rows = []
            for piece in pieces:
                for origin, offset, size, _, _ in piece.parts():
                    extents.extend((origin, base + piece.slot_offset + offset, size, leaf_count))
                    leaf_count += -(-size // LEAF_SIZE) if leaves else 0
                    rows.append(Row(piece, piece.offset + offset, size))
            self.rows.append(rows)
            row_count += len(rows)
            ends.append(row_count)
        self.leaves = bytearray(leaf_count * 8)
        self.crcs = array("I", bytes(4 * row_count)) if crcs else array("I")
        self.hashed = bytearray([leaves]) * len(turns)
        self._open = min(len(slots), len(turns))
        self._slots = slots  # The threads know only their addresses.
        wanted = SlotRequest(
            extents,
            ends,
            len(slots),
            leaves=self.leaves if leaves else None,
            crcs=self.crcs if crcs else None,
            hashed=self.hashed,
        )
        # For direct I/O the threads take large blocks, of which a slot has only a few. From the
        # page cache small ones are as fast, and all threads can work on the slot that is waited for.
        self._reads = source.fill_slots(wanted, threads=threads, past_the_cache=not is_warm(source))
        self._source, self._extents, self._ends = source, extents, ends

    def first_row(self, turn: int) -> int:
        """The number of the first row of a turn."""
        return self._ends[turn - 1] if turn else 0

    def wait(self, turn: int) -> list[tuple[Row, Fault]]:
        """Wait until a turn is full; returns what could not be read."""
        first = self.first_row(turn)
        faults = [Fault(*fault) for fault in self._reads.wait(turn)]
        return [(self.rows[turn][fault.move - first], fault) for fault in faults]

    def release(self) -> None:
        self._open = min(self._open + 1, len(self.hashed))
        self._reads.release()

    def read_again(self, turn: int, leaves: Sequence[int]) -> memoryview:
        """Read leaves of a turn that waits, by their numbers in it, to their place once more; their digests."""
        first, end = self.first_row(turn), self._ends[turn]
        begins = self._extents[4 * first + 3 : 4 * end : 4]
        moves = []
        for leaf in leaves:
            row = bisect_right(begins, begins[0] + leaf) - 1
            origin, address, size, begin = self._extents[4 * (first + row) : 4 * (first + row + 1)]
            at = (begins[0] + leaf - begin) * LEAF_SIZE
            moves.append(Move(origin + at, address + at, min(LEAF_SIZE, size - at)))
        return self._source.transfer(moves, sink=MEMORY, threads=1).leaves

    def stop_hashing(self) -> int:
        """Hash no leaves any more; the first turn of which none is hashed: threads may be at those before it."""
        self.hashed[self._open :] = bytes(len(self.hashed) - self._open)
        return self._open

    def close(self) -> None:
        self._reads.close()


class RawFiller:
    """Records that are stored as they are. With ``verify``, the threads hash what they read."""

    def __init__(
        self,
        source: Source,
        turns: Sequence[Sequence[Piece]],
        slots: Sequence[torch.Tensor],
        *,
        threads: int,
        verify: bool,
    ) -> None:
        self._filler = RowFiller(source, turns, slots, threads=threads, leaves=verify)
        self._leaves = Leaves(turns) if verify else None
        self._source = source
        self._passed = 0

    def wait(self, turn: int) -> list[Suspect]:
        suspects = [
            Suspect(row.piece.region, row.offset + fault.offset, fault.size) for row, fault in self._filler.wait(turn)
        ]
        if self._leaves is not None and self._filler.hashed[turn]:
            here = slice(self._passed, self._passed + 8 * self._leaves.counts[turn])
            self._passed = here.stop
            actual, expected = self._filler.leaves[here], self._leaves.digests[here]
            if actual != expected:
                bad = [at // 8 for at in range(0, len(actual), 8) if actual[at : at + 8] != expected[at : at + 8]]
                suspects += self._leaves.suspects(turn, self._still_bad(turn, bad, expected))
        return suspects

    def _still_bad(self, turn: int, bad: list[int], expected: bytearray) -> Sequence[int]:
        """The leaves that are bad however often they are read: others changed on their way."""

        def again(bad: Sequence[int]) -> list[int]:
            digests = self._filler.read_again(turn, bad)
            read = enumerate(bad)
            return [leaf for n, leaf in read if digests[8 * n : 8 * n + 8] != expected[8 * leaf : 8 * leaf + 8]]

        return until_right(self._source, bad, again)

    def release(self) -> None:
        self._filler.release()

    def stop_proving(self) -> int:
        return self._filler.stop_hashing()

    def close(self) -> None:
        self._filler.close()


class DecodingFiller:
    """Records of any codec: chunks are read, decoded and hashed on Python threads (the codecs release the GIL).

    What a device decodes is read as it is stored, and so are raw bytes; see `as_stored`. These are not hashed: it is
    for turns that are proven on the device, or nowhere.
    """

    def __init__(
        self,
        source: Source,
        turns: Sequence[Sequence[Piece]],
        slots: Sequence[torch.Tensor],
        *,
        threads: int,
        verify: bool,
        decode: bool = True,
    ) -> None:
        self._source = source
        self._turns = turns
        self._slots = slots
        self._verify = verify
        self._decode = decode
        self._cold = not is_warm(source)
        self._pool = Pool(threads)
        self._ahead = contextlib.ExitStack()
        self._ahead.enter_context(source.ahead(self._chunks(), threads=threads))
        self._pending: dict[int, list[Task[list[Suspect]]]] = {}
        self._started = 0
        self._released = 0
        self._start()

    def _chunks(self) -> Iterator[Extent]:
        """What is read chunk by chunk, in order."""
        for turn in self._turns if self._decode else ():
            for _, _, size, record, start in (part for piece in turn for part in piece.parts()):
                for chunk in encoded_pieces(Target(record, start, size, None)) if record is not None else ():
                    yield chunk.target.record.chunk_extent(chunk.chunk)

    def _start(self) -> None:
        while self._started < min(self._released + len(self._slots), len(self._turns)):
            turn, self._started = self._started, self._started + 1
            base = self._slots[turn % len(self._slots)].data_ptr()
            jobs = self._decoding if self._decode else self._reading
            self._pending[turn] = [
                self._pool.submit(job) for piece in self._turns[turn] for job in jobs(piece, base + piece.slot_offset)
            ]

    def _decoding(self, piece: Piece, address: int) -> Iterator[Callable[[], list[Suspect]]]:
        """What brings the raw bytes of a piece to this address."""
        for part in piece.parts():
            yield from self._decoding_part(piece, part, address + part.offset)

    def _decoding_part(self, piece: Piece, part: Part, address: int) -> Iterator[Callable[[], list[Suspect]]]:
        if part.record is None:
            return
        reading = Reading(1, verify=self._verify)
        for chunk in encoded_pieces(Target(part.record, part.start, part.size, address)):
            yield functools.partial(_decode, self._source, chunk, reading, piece, part)

    def _reading(self, piece: Piece, address: int) -> Iterator[Callable[[], list[Suspect]]]:
        """What brings a piece to this address as the device wants it."""
        for stretch in stretches_of(piece):
            if stretch.kind == "other":
                part = Part(0, stretch.offset, stretch.size, stretch.record, stretch.start)
                yield from self._decoding_part(piece, part, address + stretch.offset)
                continue
            at = 0
            while at < stretch.stored_size:
                # Cut where the file has a multiple, so that direct reads need no copies at the seams.
                end = min((stretch.source + at) // _AT_ONCE * _AT_ONCE + _AT_ONCE - stretch.source, stretch.stored_size)
                move = Move(stretch.source + at, address + stretch.place + at, end - at)
                yield functools.partial(_read, self._source, move, self._cold, piece, stretch)
                at = end

    def wait(self, turn: int) -> list[Suspect]:
        return [suspect for task in self._pending.pop(turn) for suspect in task.result()]

    def release(self) -> None:
        self._released += 1
        self._start()

    def stop_proving(self) -> int:
        self._verify = False
        return self._started

    def stop_decoding(self) -> int:
        """Fill slots as the device wants them from now on; the first turn of which that is so."""
        self._decode = False
        return self._started

    def close(self) -> None:
        self._ahead.close()  # Whoever waits for a read now gets an error, and the pool its threads back.
        self._pool.close()


_AT_ONCE: Final = 4 * 1024 * 1024
"""Bytes that one thread reads of what is not decoded: some 50 us for Python beside 0.3 ms or more for the read."""


def _decode(source: Source, chunk: EncodedPiece, reading: Reading, piece: Piece, part: Part) -> list[Suspect]:
    def again(_: Sequence[BadRange]) -> list[BadRange]:
        with source.ahead([chunk.target.record.chunk_extent(chunk.chunk)], threads=1):
            return read_piece(source, chunk, reading)

    found = until_right(source, read_piece(source, chunk, reading), again)
    return [_suspect(piece, part, bad) for bad in found]


def _suspect(piece: Piece, part: Part, bad: BadRange) -> Suspect:
    """Bad leaves of a record as bytes of a region; of a chunk that did not decode, those that the part has of it."""
    start = max(bad.leaf * LEAF_SIZE, part.start)
    end = min((bad.leaf + bad.leaves) * LEAF_SIZE, part.start + part.size)
    return Suspect(piece.region, piece.offset + part.offset + start - part.start, end - start)


def _read(source: Source, move: Move, cold: bool, piece: Piece, stretch: Stretch) -> list[Suspect]:
    """Read a part of a stretch to where it belongs; says which raw bytes cannot be had."""
    moved = source.transfer([move], sink=MEMORY, threads=1, leaves=False, past_the_cache=cold)
    suspects = []
    for fault in moved.faults:
        first = move.source - stretch.source + fault.offset
        begin = piece.offset + stretch.offset
        if stretch.kind == "raw":
            suspects.append(Suspect(piece.region, begin + first, fault.size))
            continue
        for stored, stored_size, raw, size in stretch.chunks():
            if stored < first + fault.size and first < stored + stored_size:
                suspects.append(Suspect(piece.region, begin + raw, size))
    return suspects

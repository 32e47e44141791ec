"""Filling slots: the bytes of a plan's turns, read ahead of whoever takes them.

A filler starts on all slots at once and refills each as soon as it is
released. What it can tell about bad bytes it says when a turn is waited for.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from fastckpt import _core
from fastckpt.constants import LEAF_SIZE
from fastckpt.fckpt.bad_ranges import BadRange
from fastckpt.fckpt.payload import Reading, Target, encoded_pieces, read_piece
from fastckpt.io.pool import Pool, Task
from fastckpt.io.residency import is_warm
from fastckpt.io.source import Source
from fastckpt.io.transfer import Fault
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
        self._native = _core.SlotFiller(
            source.fd,
            extents,
            ends,
            self.leaves if leaves else None,
            self.crcs if crcs else None,
            slots=len(slots),
            threads=threads,
            # For direct I/O the threads take large blocks, of which a slot has only a few. From the
            # page cache small ones are as fast, and all threads can work on the slot that is waited for.
            source_direct_fd=-1 if is_warm(source) else source.direct_fd,
            hashed=self.hashed,
        )
        self._ends = ends

    def first_row(self, turn: int) -> int:
        """The number of the first row of a turn."""
        return self._ends[turn - 1] if turn else 0

    def wait(self, turn: int) -> list[tuple[Row, Fault]]:
        """Wait until a turn is full; returns what could not be read."""
        first = self.first_row(turn)
        faults = [Fault(*fault) for fault in self._native.wait(turn)]
        return [(self.rows[turn][fault.move - first], fault) for fault in faults]

    def release(self) -> None:
        self._open = min(self._open + 1, len(self.hashed))
        self._native.release()

    def stop_hashing(self) -> int:
        """Hash no leaves any more; the first turn of which none is hashed: threads may be at those before it."""
        self.hashed[self._open :] = bytes(len(self.hashed) - self._open)
        return self._open

    def close(self) -> None:
        self._native.close()


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
                suspects += self._leaves.suspects(turn, bad)
        return suspects

    def release(self) -> None:
        self._filler.release()

    def stop_proving(self) -> int:
        return self._filler.stop_hashing()

    def close(self) -> None:
        self._filler.close()


class DecodingFiller:
    """Records of any codec: chunks are read, decoded and hashed on Python threads (the codecs release the GIL)."""

    def __init__(
        self,
        source: Source,
        turns: Sequence[Sequence[Piece]],
        slots: Sequence[torch.Tensor],
        *,
        threads: int,
        verify: bool,
    ) -> None:
        self._source = source
        self._turns = turns
        self._slots = slots
        self._verify = verify
        self._pool = Pool(threads)
        self._pending: dict[int, list[tuple[Piece, Part, Task[list[BadRange]]]]] = {}
        self._started = 0
        self._released = 0
        self._start()

    def _start(self) -> None:
        while self._started < min(self._released + len(self._slots), len(self._turns)):
            turn, self._started = self._started, self._started + 1
            base = self._slots[turn % len(self._slots)].data_ptr()
            reading = Reading(1, verify=self._verify)
            self._pending[turn] = [
                (piece, part, self._pool.submit(functools.partial(read_piece, self._source, chunk, reading)))
                for piece in self._turns[turn]
                for part in piece.parts()
                if part.record is not None
                for chunk in encoded_pieces(
                    Target(part.record, part.start, part.size, base + piece.slot_offset + part.offset)
                )
            ]

    def wait(self, turn: int) -> list[Suspect]:
        return [_suspect(piece, part, bad) for piece, part, task in self._pending.pop(turn) for bad in task.result()]

    def release(self) -> None:
        self._released += 1
        self._start()

    def stop_proving(self) -> int:
        self._verify = False
        return self._started

    def close(self) -> None:
        self._pool.close()


def _suspect(piece: Piece, part: Part, bad: BadRange) -> Suspect:
    """Bad leaves of a record as bytes of a region; of a chunk that did not decode, those that the part has of it."""
    start = max(bad.leaf * LEAF_SIZE, part.start)
    end = min((bad.leaf + bad.leaves) * LEAF_SIZE, part.start + part.size)
    return Suspect(piece.region, piece.offset + part.offset + start - part.start, end - start)

"""Chunks of planes decoded where they arrive, from the turn on that the filler leaves to the device.

Stored bytes pass through the slots and are copied to a buffer on the device,
one for each turn that is under way. Behind the copies a kernel decodes all
chunks of the turn into the memory of their regions; whatever else there is to
do with that memory, proof first of all, comes after it. What comes back is
one flag for each chunk.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from fastckpt.kernels.decode_planes import COLUMNS, decode_planes, room_for
from fastckpt.kernels.dispatch import Engine
from fastckpt.staging.as_stored import stretches_of
from fastckpt.staging.device import Copy, Device, Work
from fastckpt.staging.regions import Piece, Suspect

_ROW_SIZE = 8 * COLUMNS + 4
"""Bytes a chunk takes in the memory of a flight: its row and its flag."""


class Leaving(Protocol):
    """A filler that decodes, and can leave that to others."""

    def stop_decoding(self) -> int:
        """Fill slots with stored bytes from now on; the first turn of which nothing is decoded here any more."""


class _Flight:
    """Memory for the chunks of one turn.

    Attributes:
        capacity: Chunks that it has memory for.
        stored: On the device: their stored bytes.
        host: Their rows and flags in host memory.
        far: The same on the device.
        room: What the kernels write down.
        suspects: What is suspect if a chunk is bad, in the order of the rows.
    """

    def __init__(self) -> None:
        self.capacity = 0
        self.suspects: list[Suspect] = []

    def make_room(self, device: Device, chunks: int, nbytes: int) -> None:
        """Have memory for so many chunks of so many stored bytes; nothing may use what there was."""
        if not self.capacity:
            (self.stored,) = device.allocate([nbytes])
        if self.capacity < chunks:
            self.capacity = max(chunks, 2 * self.capacity)
            self.host = device.host_memory(self.capacity * _ROW_SIZE)
            self.far, self.room = device.allocate([self.capacity * _ROW_SIZE, room_for(self.capacity)])


class Decoding:
    """Decodes the chunks of one turn after the other.

    Args:
        device: Where they are decoded.
        turns: All turns.
        flights: How many turns may be under way at the same time.
        slot_size: Bytes that a turn has at most.
        filler: What fills the slots, with raw bytes until it is told to leave that.
        ask: What the engine of the device is; None while that is not known.
        first: The first turn that the filler has left already.
    """

    def __init__(
        self,
        device: Device,
        turns: Sequence[Sequence[Piece]],
        flights: int,
        slot_size: int,
        *,
        filler: Leaving,
        ask: Callable[[], Engine | None],
        first: int | None = None,
    ) -> None:
        self._device = device
        self._turns = turns
        self._slot_size = slot_size
        self._filler = filler
        self._ask: Callable[[], Engine | None] | None = ask if first is None else None
        self._first = len(turns) if first is None else first
        self._flights = [_Flight() for _ in range(flights)]

    def takes(self, turn: int) -> bool:
        """Whether the slot of a turn has stored bytes. To be asked once for each turn, in order."""
        if self._ask is not None and (engine := self._ask()) is not None:
            self._ask = None
            if engine.name == "triton":
                self._first = self._filler.stop_decoding()
        return turn >= self._first

    def queue(
        self, turn: int, slot: torch.Tensor, memories: Sequence[torch.Tensor], copies: list[Copy], works: list[Work]
    ) -> None:
        """Add what brings a turn to its place.

        Args:
            turn: Its number.
            slot: What it is in.
            memories: The memory of the region of each of its pieces.
            copies: Gets all its copies.
            works: Gets what decodes, which must come before all that reads these memories.
        """
        flight = self._flights[turn % len(self._flights)]
        flight.suspects = []
        rows = array("q")
        at, largest = 0, 0
        runs: list[tuple[int, torch.Tensor]] = []
        for piece, memory in zip(self._turns[turn], memories, strict=True):
            passed = 0
            for stretch in stretches_of(piece):
                if stretch.kind != "planes":
                    continue
                copies += _as_it_is(piece, memory, slot, passed, stretch.offset)
                passed = stretch.offset + stretch.size
                begin = piece.slot_offset + stretch.place
                runs.append((at, slot[begin : begin + stretch.stored_size]))
                for stored, stored_size, raw, size in stretch.chunks():
                    offset = piece.offset + stretch.offset + raw
                    rows.extend((at + stored, stored_size, memory.data_ptr() + offset, size))
                    flight.suspects.append(Suspect(piece.region, offset, size))
                    largest = max(largest, size)
                at += stretch.stored_size
            copies += _as_it_is(piece, memory, slot, passed, piece.size)
        if not runs:
            return
        count = len(flight.suspects)
        flight.make_room(self._device, count, self._slot_size)
        chunks, flags = _columns(flight.host, count)
        chunks.copy_(torch.frombuffer(rows, dtype=torch.int64).view(count, COLUMNS))
        chunks[:, 0] += flight.stored.data_ptr()
        arrived, bad = _columns(flight.far, count)
        copies += [(flight.stored[to : to + len(run)], run) for to, run in runs]
        copies.append((arrived, chunks))
        room = flight.room

        def decode() -> None:
            bad.zero_()
            decode_planes(arrived, bad, room, largest=largest)
            flags.copy_(bad, non_blocking=True)

        works.append(decode)

    def bad(self, turn: int) -> list[Suspect]:
        """The chunks of a turn that do not decode; the mark behind it must have been waited for."""
        flight = self._flights[turn % len(self._flights)]
        if turn < self._first or not flight.suspects:
            return []
        _, flags = _columns(flight.host, len(flight.suspects))
        return [flight.suspects[number] for number in flags.nonzero().flatten().tolist()]


def _as_it_is(piece: Piece, memory: torch.Tensor, slot: torch.Tensor, start: int, end: int) -> list[Copy]:
    """The copy of bytes of a piece that are in the slot what they are in the region."""
    if start >= end:
        return []
    begin = piece.slot_offset
    return [(memory[piece.offset + start : piece.offset + end], slot[begin + start : begin + end])]


def _columns(memory: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and flags of so many chunks."""
    rows = memory[: 8 * COLUMNS * count].view(torch.int64).view(count, COLUMNS)
    return rows, memory[8 * COLUMNS * count : _ROW_SIZE * count].view(torch.int32)

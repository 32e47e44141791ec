"""The flow: slots are filled, copied, checked and given back, turn after turn.

At most two turns are on their way to the device at a time. That keeps the
link busy, bounds what the device holds beside the tensors, and leaves the
other slots to the filler. A turn has landed when its copies and its check are
done: only then is its slot released, and only then does a region that ended
in it come out, with every leaf of it that is bad.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import torch

from fastckpt.io.transfer import Progress
from fastckpt.staging.check import LeafCheck
from fastckpt.staging.device import Device
from fastckpt.staging.fill import Filler, Suspect
from fastckpt.staging.regions import Piece, Region

FLIGHTS: Final = 2
"""Turns on their way to the device at a time."""

Cargo = TypeVar("Cargo")
Cargo_co = TypeVar("Cargo_co", covariant=True)


class Destination(Protocol[Cargo_co]):
    """Where regions go."""

    def place(self, region: Region) -> torch.Tensor:
        """``region.nbytes`` bytes (uint8) on the device, asked for when its first piece comes."""

    def complete(self, region: Region, memory: torch.Tensor) -> Cargo_co:
        """All copies into ``memory`` are queued: queue what is to follow. The result comes out with the region.

        Memory that queued work uses must be kept alive by the result.
        """


@dataclass(slots=True)
class Arrival(Generic[Cargo]):
    """A region that is on the device. Only without suspects may it be used."""

    region: Region
    cargo: Cargo
    suspects: list[Suspect]


@dataclass(slots=True)
class _Flight(Generic[Cargo]):
    """A turn on its way: the regions that end in it, what the filler found, and when it has landed."""

    turn: int
    ended: deque[tuple[Region, torch.Tensor, Cargo]]
    suspects: list[Suspect]
    mark: Any


class Pipeline(Generic[Cargo]):
    """One run from file to device; iterate over it once.

    Args:
        turns: What passes through the slots (`regions.cut`).
        slots: The slots that ``filler`` fills.
        filler: Closed when the run ends, however it does.
        device: Where the bytes go. When the run ends nothing is under way there.
        destination: Gives the regions their places.
        check: Checks leaves on the device, if that is wanted.
        progress: Told of the bytes that have landed.
    """

    def __init__(
        self,
        turns: Sequence[Sequence[Piece]],
        slots: Sequence[torch.Tensor],
        filler: Filler,
        device: Device,
        destination: Destination[Cargo],
        check: LeafCheck | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._turns = turns
        self._slots = slots
        self._filler = filler
        self._device = device
        self._destination = destination
        self._check = check
        self._progress = progress
        self._landed = 0
        self._memories: dict[Region, torch.Tensor] = {}
        self._suspects: dict[Region, list[Suspect]] = {}

    def __iter__(self) -> Generator[Arrival[Cargo], None, None]:
        flying: deque[_Flight[Cargo]] = deque()
        try:
            self._device.take_over()
            for turn in range(len(self._turns)):
                # The slot of this turn must have been released before it can be waited for.
                while len(flying) > min(FLIGHTS, len(self._slots) - 1):
                    yield from self._land(flying.popleft())
                found = self._filler.wait(turn)
                while len(flying) >= FLIGHTS:
                    yield from self._land(flying.popleft())
                flying.append(self._launch(turn, found))
            while flying:
                yield from self._land(flying.popleft())
        finally:
            try:
                # Copies may still read the slots and write to memory that nobody will hold any more.
                self._device.synchronize()
            finally:
                self._filler.close()

    def _launch(self, turn: int, found: list[Suspect]) -> _Flight[Cargo]:
        slot = self._slots[turn % len(self._slots)]
        arrived = []
        for piece in self._turns[turn]:
            region, offset, size, slot_offset = piece
            memory = self._memories.get(region)
            if memory is None:
                memory = self._memories[region] = self._destination.place(region)
            if size:
                self._device.copy(memory[offset : offset + size], slot[slot_offset : slot_offset + size])
            arrived.append((piece, memory))
        if self._check is not None:
            self._check.start(turn, arrived)
        ended: deque[tuple[Region, torch.Tensor, Cargo]] = deque()
        for piece, memory in arrived:
            if piece.ends_region:
                del self._memories[piece.region]
                ended.append((piece.region, memory, self._destination.complete(piece.region, memory)))
        return _Flight(turn, ended, found, self._device.mark())

    def _land(self, flight: _Flight[Cargo]) -> Iterator[Arrival[Cargo]]:
        self._device.wait(flight.mark)
        if self._check is not None:
            flight.suspects.extend(self._check.bad(flight.turn))
        self._filler.release()
        for suspect in flight.suspects:
            self._suspects.setdefault(suspect.region, []).append(suspect)
        self._landed += sum(piece.size for piece in self._turns[flight.turn])
        if self._progress is not None:
            self._progress(self._landed)
        while flight.ended:
            # No local name keeps what came out before: the consumer decides how long tensors live.
            yield self._arrival(*flight.ended.popleft())

    def _arrival(self, region: Region, memory: torch.Tensor, cargo: Cargo) -> Arrival[Cargo]:
        return Arrival(region, cargo, self._suspects.pop(region, []))

"""The flow: slots are filled, copied, checked and given back, turn after turn.

At most two turns are on their way to the device at a time. That keeps the
link busy, bounds what the device holds beside the tensors, and leaves the
other slots to the filler. A turn has landed when its copies and its check are
done: only then is its slot released, and only then does a region that ended
in it come out, with every leaf of it that is bad.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import torch

from fastckpt.errors import UsageError
from fastckpt.staging.decoding import Decoding
from fastckpt.staging.device import Copy, Device, Work
from fastckpt.staging.fill import Filler
from fastckpt.staging.regions import Piece, Region, Suspect
from fastckpt.staging.ring import Slots

FLIGHTS: Final = 2
"""Turns on their way to the device at a time."""

Cargo = TypeVar("Cargo")
Cargo_co = TypeVar("Cargo_co", covariant=True)


class Destination(Protocol[Cargo_co]):
    """Where regions go."""

    def alone(self, region: Region) -> bool:
        """Whether a region must not share its memory with its neighbours."""

    def place(self, region: Region) -> torch.Tensor:
        """``region.nbytes`` bytes (uint8) on the device, asked for when its first piece comes."""

    def complete(self, region: Region, memory: torch.Tensor, then: Callable[[Work], None]) -> Cargo_co:
        """The last copy into ``memory`` comes next. The result comes out with the region, when it has arrived.

        Args:
            region: What is complete.
            memory: Its place.
            then: Takes work that is to follow the copies on the device. The memory it uses must be kept alive by
                the result.
        """


class Check(Protocol):
    """Proves leaves on the device: `check.LeafCheck` all of them, `handover.Handover` those of later turns."""

    def queue(self, turn: int, memories: Sequence[torch.Tensor], copies: list[Copy], works: list[Work]) -> None:
        """Add what checks a turn to what is sent with it; ``memories`` are those of the regions of its pieces."""

    def bad(self, turn: int) -> list[Suspect]:
        """The leaves of a turn that has landed that are not as written."""


@dataclass(slots=True)
class Arrival(Generic[Cargo]):
    """A region that is on the device. Only without suspects may it be used."""

    region: Region
    cargo: Cargo
    suspects: list[Suspect]

    def take(self) -> Cargo:
        """The cargo; from here on the caller alone keeps it alive."""
        cargo = self.cargo
        del self.cargo
        return cargo


@dataclass(slots=True)
class _Flight(Generic[Cargo]):
    """A turn on its way.

    Attributes:
        turn: Its number.
        nbytes: Its bytes.
        arrivals: The regions that end in it.
        suspects: What the filler found.
        memories: Where its copies go.
        mark: Behind which it has landed.
    """

    turn: int
    nbytes: int
    arrivals: deque[Arrival[Cargo]]
    suspects: list[Suspect]
    memories: list[torch.Tensor]
    mark: Any


class Pipeline(Generic[Cargo]):
    """One run from file to device; iterate over it once.

    Args:
        turns: What passes through the slots (`regions.cut`).
        slots: The slots that ``filler`` fills.
        filler: What fills them; whoever made it closes it, after the run.
        device: Where the bytes go. When the run ends nothing is under way there.
        destination: Gives the regions their places.
        decoding: Decodes on the device, if that is possible.
        check: Checks leaves on the device, if that is wanted.
        landed: Called with the bytes that have landed, before anything of them comes out. May raise.
    """

    def __init__(
        self,
        turns: Sequence[Sequence[Piece]],
        slots: Slots,
        filler: Filler,
        device: Device,
        destination: Destination[Cargo],
        decoding: Decoding | None,
        check: Check | None,
        landed: Callable[[int], None],
    ) -> None:
        self._turns = turns
        self._slots = slots
        self._filler = filler
        self._device = device
        self._destination = destination
        self._decoding = decoding
        self._check = check
        self._tell = landed
        self._landed = 0
        self._process = os.getpid()
        self._memories: dict[Region, torch.Tensor] = {}
        self._suspects: dict[Region, list[Suspect]] = {}

    def __iter__(self) -> Generator[Arrival[Cargo], None, None]:
        flying: deque[_Flight[Cargo]] = deque()
        try:
            self._device.take_over()
            for turn in range(len(self._turns)):
                self._slots.lock(turn % len(self._slots), self._device)
                # The slot of this turn must have been released before it can be waited for. Others are as soon as they
                # can be: the filler reads ahead into them.
                while flying and (
                    len(flying) > min(FLIGHTS, len(self._slots) - 1) or self._device.has_passed(flying[0].mark)
                ):
                    yield from self._land(flying.popleft())
                if os.getpid() != self._process:
                    # Its threads are not here: it would wait for ever.
                    raise UsageError("this was begun before the process was forked", next_step="begin it anew here")
                found = self._filler.wait(turn)
                while len(flying) >= FLIGHTS:
                    yield from self._land(flying.popleft())
                flying.append(self._launch(turn, found))
            while flying:
                yield from self._land(flying.popleft())
        finally:
            # Copies may still read the slots and write to memory that nobody will hold any more.
            self._device.synchronize()

    def _launch(self, turn: int, found: list[Suspect]) -> _Flight[Cargo]:
        slot, memories_of = self._slots[turn % len(self._slots)], self._memories
        copies: list[Copy] = []
        works: list[Work] = []
        memories: list[torch.Tensor] = []
        arrivals: deque[Arrival[Cargo]] = deque()
        for piece in self._turns[turn]:
            memory = memories_of.get(piece.region)
            if memory is None:
                memory = memories_of[piece.region] = self._destination.place(piece.region)
            memories.append(memory)
        if self._decoding is not None and self._decoding.takes(turn):
            self._decoding.queue(turn, slot, memories, copies, works)
        else:
            copies += _copies(self._turns[turn], slot, memories)
        for piece, memory in zip(self._turns[turn], memories, strict=True):
            if piece.ends_region:
                del memories_of[piece.region]
                cargo = self._destination.complete(piece.region, memory, works.append)
                arrivals.append(Arrival(piece.region, cargo, []))
        if self._check is not None:
            self._check.queue(turn, memories, copies, works)
        nbytes = sum(piece.size for piece in self._turns[turn])
        return _Flight(turn, nbytes, arrivals, found, memories, self._device.send(copies, works))

    def _land(self, flight: _Flight[Cargo]) -> Iterator[Arrival[Cargo]]:
        self._device.wait(flight.mark)
        for found in (self._decoding, self._check):
            if found is not None:
                flight.suspects.extend(found.bad(flight.turn))
        self._filler.release()
        for suspect in flight.suspects:
            self._suspects.setdefault(suspect.region, []).append(suspect)
        self._landed += flight.nbytes
        self._tell(self._landed)
        # No name here keeps what came out before: the consumer decides how long tensors live.
        flight.memories.clear()
        while flight.arrivals:
            yield self._with_suspects(flight.arrivals.popleft())

    def _with_suspects(self, arrival: Arrival[Cargo]) -> Arrival[Cargo]:
        if self._suspects:
            arrival.suspects = self._suspects.pop(arrival.region, [])
        return arrival


def _copies(pieces: Sequence[Piece], slot: torch.Tensor, memories: Sequence[torch.Tensor]) -> list[Copy]:
    """The copies of pieces that are in the slot what they are in their regions."""
    return [
        (
            memory if piece.size == piece.region.nbytes else memory[piece.offset : piece.offset + piece.size],
            slot[piece.slot_offset : piece.slot_offset + piece.size],
        )
        for piece, memory in zip(pieces, memories, strict=True)
        if piece.size
    ]

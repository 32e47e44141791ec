"""Proof in the slots until the device can give it, and from then on there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fastckpt.kernels.dispatch import Engine
from fastckpt.staging.check import LeafCheck
from fastckpt.staging.device import Copy, Device, Work
from fastckpt.staging.fill import Filler
from fastckpt.staging.regions import Piece, Suspect


class Handover:
    """Checks leaves on the device as soon as its engine is known to be live; until then the filler proves them.

    Every turn is proven by one of the two: the filler says which is the first
    that it leaves to others, and the check begins with that one.

    Args:
        device: Where they are.
        turns: All turns.
        flights: How many turns may be under way at the same time.
        filler: What fills the slots, and proves what it reads until it is told to stop.
        ask: What the engine of the device is; None while that is not known.
    """

    def __init__(
        self,
        device: Device,
        turns: Sequence[Sequence[Piece]],
        flights: int,
        filler: Filler,
        ask: Callable[[], Engine | None],
    ) -> None:
        self._device = device
        self._turns = turns
        self._flights = flights
        self._filler = filler
        self._ask: Callable[[], Engine | None] | None = ask
        self._first = len(turns)
        self._check: LeafCheck | None = None

    @property
    def is_live(self) -> bool:
        """Whether it checks by now."""
        return self._check is not None

    def queue(self, turn: int, memories: Sequence[torch.Tensor], copies: list[Copy], works: list[Work]) -> None:
        """See `LeafCheck`."""
        if self._ask is not None and (engine := self._ask()) is not None:
            self._ask = None
            if engine.name == "triton":
                self._first = self._filler.stop_proving()
                self._check = LeafCheck(self._device, self._turns[self._first :], self._flights)
        if self._check is not None and turn >= self._first:
            self._check.queue(turn - self._first, memories, copies, works)

    def bad(self, turn: int) -> list[Suspect]:
        """See `LeafCheck`."""
        return self._check.bad(turn - self._first) if self._check is not None and turn >= self._first else []

"""The ring: a few slots of host memory that everything on its way to or from a device passes through.

Pinning memory costs about as much as filling it, so the slots of one transfer
are kept for the next. Two transfers at the same time never share slots.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch

from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import UsageError
from fastckpt.staging.device import Device


@dataclass(frozen=True, slots=True)
class Ring:
    """How much host memory a transfer may use: ``slots`` pieces of ``slot_size`` bytes.

    One slot is copied while the others are filled: two are the least that
    overlap, and more than four were not seen to help. A slot should take a
    millisecond or so to copy, for then the cost of starting a copy vanishes.

    Attributes:
        slots: How many, at least 1.
        slot_size: Bytes of each, a multiple of 16 KiB (a leaf).

    Raises:
        UsageError: One of them is not such a number.

    Example:
        >>> tensors = dict(fastckpt.stream("state.fckpt", ring=fastckpt.Ring(slots=2, slot_size=2**20)))
    """

    slots: int = 4
    slot_size: int = 32 * 1024 * 1024

    def __post_init__(self) -> None:
        if type(self.slots) is not int or not 1 <= self.slots <= 1024:
            raise UsageError("a ring has 1 to 1024 slots", actual=self.slots)
        if type(self.slot_size) is not int or self.slot_size < LEAF_SIZE or self.slot_size % LEAF_SIZE:
            raise UsageError(f"the size of a slot must be a multiple of {LEAF_SIZE} bytes", actual=self.slot_size)


_idle: Final[dict[bool, tuple[Ring, list[torch.Tensor]]]] = {}
"""The slots used last, pinned and not: at most one ring of each kind is kept."""
_idle_lock = threading.Lock()


def _new_lock() -> None:
    """In a forked child: the lock may be held by a thread that is not there."""
    global _idle_lock
    _idle_lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


@contextmanager
def borrowed_slots(ring: Ring, device: Device) -> Iterator[list[torch.Tensor]]:
    """The slots of a ring, uint8 tensors in host memory that ``device`` copies from and to at full speed.

    Before they are given back, no copy may be under way any more:
    see `Device.synchronize`.
    """
    with _idle_lock:
        kept = _idle.pop(device.pinned, None)
    if kept is not None and kept[0] == ring:
        slots = kept[1]
    else:
        del kept  # Not both at the same time.
        # Made in inference mode, they could never be written to outside of it.
        with torch.inference_mode(False):
            slots = [device.host_memory(ring.slot_size) for _ in range(ring.slots)]
    try:
        yield slots
    finally:
        with _idle_lock:
            _idle[device.pinned] = (ring, slots)

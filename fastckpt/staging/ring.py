"""The ring: a few slots of host memory that everything on its way to or from a device passes through.

Locking memory into place costs about as much as filling it. So a slot is
locked when it is first copied, while others are filled already, and the slots
of one transfer are kept for the next. Two transfers at the same time never
share slots.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, overload

import torch

from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import UsageError
from fastckpt.io.memory import allocate
from fastckpt.staging.device import Device
from fastckpt.staging.page_lock import unlock_pages


@dataclass(frozen=True, slots=True)
class Ring:
    """How much host memory a transfer may use: ``slots`` pieces of ``slot_size`` bytes.

    One slot is copied while the others are filled: two are the least that
    overlap. The default was not measured on a GPU; it is reckoned. Two slots
    fly and two fill. 32 MiB take 0.6 ms on a link of 55 GB/s, of which the host
    needs some 0.03 ms (``benchmarks/gpu_host.py``) and CUDA's calls about as
    much. Slots of 4 to 8 MiB would stay in the cache of the processor on their
    way and spare the memory one of three passes, but leave the host a quarter of that time.

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
            raise UsageError("a ring needs 1 to 1024 slots", actual=self.slots)
        if type(self.slot_size) is not int or self.slot_size < LEAF_SIZE or self.slot_size % LEAF_SIZE:
            raise UsageError(f"the size of a slot must be a multiple of {LEAF_SIZE} bytes", actual=self.slot_size)


ON_HOST: Final = Ring(slots=16, slot_size=8 * 1024 * 1024)
"""The ring where the destination is host memory: nothing is gained by large copies there. A slot is one request to the
disk, so each thread has one to fill, the first is copied early, and out of the cache of the processor."""


class Slots(Sequence[torch.Tensor]):
    """The slots: uint8 tensors of one size in host memory.

    Args:
        memories: Their memory, of `fastckpt.io.memory.allocate`.
        locked: Whether it is locked into place already, by someone who unlocks it again.
    """

    def __init__(self, memories: Sequence[memoryview], *, locked: bool = False) -> None:
        self._memories = memories
        self._seen = [locked] * len(memories)
        self._locked: list[memoryview] = []
        # Made in inference mode, they could never be written to outside of it.
        with torch.inference_mode(False):
            self._tensors = [torch.frombuffer(memory, dtype=torch.uint8) for memory in memories]

    def __len__(self) -> int:
        return len(self._tensors)

    @overload
    def __getitem__(self, number: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, number: slice) -> list[torch.Tensor]: ...
    def __getitem__(self, number: int | slice) -> torch.Tensor | list[torch.Tensor]:
        return self._tensors[number]

    def lock(self, number: int, device: Device) -> None:
        """Let ``device`` copy a slot at full speed; to be called before the first copy. It may be filled meanwhile."""
        if not self._seen[number]:
            self._seen[number] = True
            if device.lock(self._memories[number]):
                self._locked.append(self._memories[number])

    def release(self) -> None:
        """Unlock them, before their memory is given back."""
        while self._locked:
            unlock_pages(self._locked.pop())


_idle: Final[dict[bool, tuple[Ring, Slots]]] = {}
"""The slots used last, by whether the device has them locked: at most one ring of each kind is kept."""
_lent: Final[list[Slots]] = []
"""Those in use."""
_lost: Final[list[Slots]] = []
"""Those that were in use when this process was forked: their memory is not here, and its place may be another's."""
_lock = threading.Lock()


def _after_fork() -> None:
    """In a child: locked memory is not there any more, and the lock may be held by a thread that is not."""
    global _lock
    _lock = threading.Lock()
    _lost.extend(_lent)
    _lent.clear()
    _idle.pop(True, None)


os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def borrowed_slots(ring: Ring, device: Device) -> Iterator[Slots]:
    """The slots of a ring.

    Before they are given back, no copy may be under way any more:
    see `Device.synchronize`.
    """
    with _lock:
        kept = _idle.pop(device.pinned, None)
    if kept is not None and kept[0] == ring:
        slots = kept[1]
    else:
        if kept is not None:
            kept[1].release()
        del kept  # Not both at the same time.
        slots = Slots([allocate(ring.slot_size) for _ in range(ring.slots)])
    with _lock:
        _lent.append(slots)
    try:
        yield slots
    finally:
        with _lock:
            if slots in _lent:
                _lent.remove(slots)
                other = _idle.get(device.pinned)
                _idle[device.pinned] = ring, slots
                if other is not None:
                    other[1].release()

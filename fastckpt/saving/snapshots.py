"""Snapshots: the bytes of a state as they are at one moment, kept apart from it.

In host memory every storage is copied once, whatever shares it: those on a
device at the speed of the link, into pinned memory, with leaf digests from
the device; those in host memory by several threads. The memory is kept for the next snapshot.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from fastckpt import _core
from fastckpt.constants import ALIGNMENT, PACK_ALIGNMENT, PACK_THRESHOLD
from fastckpt.fckpt.content import Delivery, Supply
from fastckpt.io.memory import allocate
from fastckpt.io.transfer import MEMORY, Move, transfer
from fastckpt.layout.blocks import align
from fastckpt.layout.plan import RecordPlan, plan_records
from fastckpt.staging.device import device_of
from fastckpt.staging.fetching import DeviceSupply, bytes_of
from fastckpt.tensor.flatten import on_device

_GROUP = 256 * 1024 * 1024
"""Bytes that are handed to the writer at a time."""


class Snapshot(NamedTuple):
    """Where the writer finds the bytes: an address per storage in host memory, and what brings the others."""

    origins: list[int]
    supply: Supply | None


class _Region:
    """Host memory that one snapshot after the other uses; it only grows."""

    def __init__(self) -> None:
        self._memory = memoryview(b"")
        self._for_devices = False
        self._registered = False

    def of(self, size: int, *, device: torch.device | None) -> memoryview:
        """``size`` bytes or more, which a CUDA ``device`` copies to at full speed; what stood there is gone.

        Raises:
            MemoryError: There is not as much.
        """
        if len(self._memory) < size or (device is not None and not self._for_devices):
            self.release()
            try:
                self._memory = allocate(size)
            except OSError as error:
                raise MemoryError(f"no memory for a snapshot of {size} bytes: {error.strerror}") from None
            self._for_devices = device is not None
            self._registered = device is not None and _pinned(self._memory, device)
        return self._memory

    def release(self) -> None:
        """Give the memory back."""
        if self._registered:
            _runtime().cudaHostUnregister(_core.address(self._memory))
        self._memory, self._for_devices, self._registered = memoryview(b""), False, False


def _runtime() -> Any:
    """The CUDA runtime that torch uses."""
    runtime: Any = torch.cuda.cudart
    return runtime()


def _pinned(memory: memoryview, device: torch.device) -> bool:
    """Lock memory of `allocate` into place; where the system refuses, copies are slower, and as right.

    Not torch's own pinned memory: that comes in powers of two, up to twice as much.
    """
    if hasattr(mmap, "MADV_DONTFORK"):
        # The system copies locked pages when the process forks: the whole snapshot for each worker of a data loader.
        mapping: Any = memory.obj
        mapping.madvise(mmap.MADV_DONTFORK)
    with torch.cuda.device(device):
        if int(_runtime().cudaHostRegister(_core.address(memory), len(memory), 0)) == 0:
            return True
        # The runtime keeps the error for whoever looks next. That must not be a kernel of the caller.
        with contextlib.suppress(RuntimeError):
            torch.ones(1, device=device)
    return False


_region = _Region()


def _forget_region() -> None:
    """In a forked child: it may not have the memory, and the snapshot is the parent's."""
    global _region
    _region = _Region()


os.register_at_fork(after_in_child=_forget_region)


def take(storages: Sequence[torch.UntypedStorage], *, on_devices: bool, threads: int) -> Snapshot:
    """Copy all storages; returns when they may change again.

    Only one snapshot in host memory is good at a time: the next one takes its place.

    Args:
        storages: What to copy.
        on_devices: Copy what lies on a device there, not to host memory.
        threads: Threads that copy what lies in host memory.

    Raises:
        MemoryError, torch.OutOfMemoryError: There is no room.
    """
    raws = [bytes_of(storage) for storage in storages]
    far = [number for number, raw in enumerate(raws) if on_device(raw)]
    plans, _ = plan_records([raw.numel() for raw in raws])
    supply = DeviceSupply(raws)
    covered = [] if on_devices else [plan for plan in plans if supply.covers(plan)]
    brought = set(far) if on_devices else {packed.storage for plan in covered for packed in plan.storages}
    places = _Places()
    offsets = {number: places.add(raw.numel()) for number, raw in enumerate(raws) if number not in brought}
    slot_at = align(places.end)
    slot_size = sum(align(plan.raw_size) for plan in covered)
    copying = next((raw.device for raw in raws if raw.device.type == "cuda"), None) if covered else None
    memory = torch.frombuffer(_region.of(max(slot_at + slot_size, 1), device=copying), dtype=torch.uint8)
    pieces: list[Delivery] = []
    if covered:

        @contextlib.contextmanager
        def whole(_: torch.device) -> Iterator[list[torch.Tensor]]:
            yield [memory[slot_at : slot_at + slot_size]]

        for load in DeviceSupply(raws, whole).deliver(covered):
            pieces += load
    copies = _copied([raws[number] for number in far]) if on_devices else []
    base = memory.data_ptr()
    moves = [Move(raws[n].data_ptr(), base + at, raws[n].numel()) for n, at in offsets.items() if raws[n].numel()]
    transfer(moves, source=MEMORY, sink=MEMORY, threads=threads, leaves=False)
    origins = [base + offsets.get(number, 0) for number in range(len(raws))]
    if not far:
        return Snapshot(origins, None)
    if not on_devices:
        return Snapshot(origins, _Taken(brought, pieces))
    kept = dict(zip(far, copies, strict=True))
    # What shares a record with a storage on a device is read through its supply.
    kept |= {number: memory[at : at + raws[number].numel()] for number, at in offsets.items()}
    return Snapshot(origins, DeviceSupply([kept[number] for number in range(len(raws))]))


class _Places:
    """Places in one region, one after the other: large storages aligned for direct I/O."""

    def __init__(self) -> None:
        self.end = 0

    def add(self, size: int) -> int:
        """The offset of a new place of ``size`` bytes."""
        offset = align(self.end, ALIGNMENT if size >= PACK_THRESHOLD else PACK_ALIGNMENT)
        self.end = offset + size
        return offset


def _copied(raws: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies, each on the same device; they are complete when this returns."""
    devices = {target: device_of(target) for target in {raw.device for raw in raws}}
    copies = [devices[raw.device].allocate([raw.numel()])[0] for raw in raws]
    for copy, raw in zip(copies, raws, strict=True):
        devices[raw.device].copy(copy, raw)
    for device in devices.values():
        device.synchronize()
    return copies


class _Taken:
    """Records that were brought to memory already (a `content.Supply`)."""

    def __init__(self, storages: set[int], pieces: list[Delivery]) -> None:
        self._storages = storages
        self._pieces = pieces

    def covers(self, plan: RecordPlan) -> bool:
        """See `content.Supply`."""
        return any(nbytes and storage in self._storages for storage, _, nbytes in plan.storages)

    def deliver(self, plans: Sequence[RecordPlan]) -> Iterator[list[Delivery]]:
        """See `content.Supply`. The plans are those that the snapshot was taken by: both follow from the sizes."""
        group: list[Delivery] = []
        size = 0
        for piece in self._pieces:
            group.append(piece)
            size += piece.size
            if size >= _GROUP:
                yield group
                group, size = [], 0
        if group:
            yield group

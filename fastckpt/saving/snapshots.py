"""Snapshots: the bytes of a state as they are at one moment, kept apart from it.

In host memory every storage is copied once, whatever shares it: those on a
device at the speed of the link, into pinned memory; those in host memory by
several threads. The memory is kept for the next snapshot.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from fastckpt.constants import ALIGNMENT, PACK_ALIGNMENT, PACK_THRESHOLD
from fastckpt.fckpt.content import Deliveries, Delivery, LeafDigests, Supply, brought_pieces
from fastckpt.fckpt.turns import BATCH
from fastckpt.io.memory import allocate
from fastckpt.io.transfer import MEMORY, Move, TurnMover, transfer
from fastckpt.layout.blocks import align
from fastckpt.layout.plan import RecordPlan, plan_records
from fastckpt.staging.device import device_of
from fastckpt.staging.fetching import DeviceSupply, bytes_of
from fastckpt.staging.page_lock import lock_pages, unlock_pages
from fastckpt.staging.ring import Slots
from fastckpt.tensor.flatten import on_device


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
            self._registered = device is not None and lock_pages(self._memory, device)
        return self._memory

    def release(self) -> None:
        """Give the memory back."""
        if self._registered:
            unlock_pages(self._memory)
        self._memory, self._for_devices, self._registered = memoryview(b""), False, False


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
    return _keep_on_devices(raws, far, threads) if on_devices else _bring_all(raws, far, threads)


def _keep_on_devices(raws: Sequence[torch.Tensor], far: Sequence[int], threads: int) -> Snapshot:
    """Copies on the devices of what lies there (``far``), and in host memory of the rest."""
    places = _Places()
    offsets = {number: places.add(raw.numel()) for number, raw in enumerate(raws) if number not in set(far)}
    memory = torch.frombuffer(_region.of(max(align(places.end), 1), device=None), dtype=torch.uint8)
    copies = _copied([raws[number] for number in far])
    origins = _copy_near(raws, offsets, memory.data_ptr(), threads)
    if not far:
        return Snapshot(origins, None)
    kept = dict(zip(far, copies, strict=True))
    # What shares a record with a storage on a device is read through its supply.
    kept |= {number: memory[at : at + raws[number].numel()] for number, at in offsets.items()}
    return Snapshot(origins, DeviceSupply([kept[number] for number in range(len(raws))], still=True))


def _bring_all(raws: Sequence[torch.Tensor], far: Sequence[int], threads: int) -> Snapshot:
    """Copies of everything in host memory; what lies on a device comes record by record."""
    plans, _ = plan_records([raw.numel() for raw in raws])
    supply = DeviceSupply(raws)
    covered = [plan for plan in plans if supply.covers(plan)]
    brought = {packed.storage for plan in covered for packed in plan.storages}
    places = _Places()
    offsets = {number: places.add(raw.numel()) for number, raw in enumerate(raws) if number not in brought}
    slot_at = align(places.end)
    slot_size = sum(align(plan.raw_size) for plan in covered)
    copying = next((raw.device for raw in raws if raw.device.type == "cuda"), None) if covered else None
    region = _region.of(max(slot_at + slot_size, 1), device=copying)
    memory = torch.frombuffer(region, dtype=torch.uint8)
    pieces: list[tuple[Delivery, bytes | None]] = []
    if covered:

        @contextlib.contextmanager
        def whole(_: torch.device) -> Iterator[Slots]:
            yield Slots([region[slot_at : slot_at + slot_size]], locked=True)

        with DeviceSupply(raws, whole).deliver(covered) as brought_now:
            pieces = [*brought_pieces(brought_now)]
    origins = _copy_near(raws, offsets, memory.data_ptr(), threads)
    return Snapshot(origins, _Taken(brought, pieces) if far else None)


def _copy_near(raws: Sequence[torch.Tensor], offsets: dict[int, int], base: int, threads: int) -> list[int]:
    """Copy storages in host memory to their places from ``base`` on; returns an address for each of ``raws``."""
    moves = [Move(raws[n].data_ptr(), base + at, raws[n].numel()) for n, at in offsets.items() if raws[n].numel()]
    transfer(moves, source=MEMORY, sink=MEMORY, threads=threads, leaves=False)
    return [base + offsets.get(number, 0) for number in range(len(raws))]


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
    for target, device in devices.items():
        device.send([(copy, raw) for copy, raw in zip(copies, raws, strict=True) if raw.device == target])
        device.synchronize()
    return copies


class _Taken:
    """Records that were brought to memory already (a `content.Supply`)."""

    def __init__(self, storages: set[int], pieces: Sequence[tuple[Delivery, bytes | None]]) -> None:
        self._storages = storages
        self._pieces = pieces

    def covers(self, plan: RecordPlan) -> bool:
        """See `content.Supply`."""
        return any(nbytes and storage in self._storages for storage, _, nbytes in plan.storages)

    @contextlib.contextmanager
    def deliver(self, plans: Sequence[RecordPlan]) -> Iterator[Deliveries]:
        """See `content.Supply`. The plans are those that the snapshot was taken by: both follow from the sizes."""
        yield _InMemory(self._pieces)


class _InMemory:
    """Pieces that are where they shall be, in turns of about BATCH bytes (a `content.Deliveries`)."""

    apart = TurnMover.OPEN + 1

    def __init__(self, pieces: Sequence[tuple[Delivery, bytes | None]]) -> None:
        self.turns: list[list[Delivery]] = []
        self._digests: deque[LeafDigests] = deque()
        size = BATCH
        for piece, digests in pieces:
            if size >= BATCH:
                self.turns.append([])
                self._digests.append([])
                size = 0
            self.turns[-1].append(piece)
            self._digests[-1].append(digests)
            size += piece.size

    def wait(self) -> LeafDigests:
        """See `content.Deliveries`."""
        return self._digests.popleft()

    def release(self) -> None:
        """See `content.Deliveries`."""

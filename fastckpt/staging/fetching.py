"""Bringing the bytes of storages on a device to memory: device -> pinned slot -> writer.

A few slots go round: while the writer takes the bytes of one, the device copies
into the next ones, on a stream of its own. Leaf digests are computed on the
device: a copy that went wrong on the way does not match them, and the first
load says so. They are those of the bytes that are written, also where a tensor
changes meanwhile: bytes and digests come from one copy on the device, or the
host hashes what arrived. Small storages, which share a record,
are brought together on the device, so that they cost one copy, not one each.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch

from fastckpt.constants import PACK_ALIGNMENT
from fastckpt.fckpt.content import Deliveries, Delivery, LeafDigests
from fastckpt.fckpt.slot_loads import LoadPart, slot_loads
from fastckpt.io.transfer import MEMORY, NOWHERE, Move, transfer
from fastckpt.kernels.dispatch import engine_for, engine_now
from fastckpt.kernels.launch import hash_leaves, leaf_table
from fastckpt.layout.places import PackedStorage
from fastckpt.layout.plan import RecordPlan
from fastckpt.layout.records import Record, count_leaves
from fastckpt.staging.device import Device, Work, device_of
from fastckpt.staging.ring import Ring, Slots, borrowed_slots
from fastckpt.tensor.flatten import on_device

LendSlots = Callable[[torch.device], AbstractContextManager[Slots]]
"""Lends slots for what comes from this device."""


def bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    """A storage as a uint8 tensor of one dimension, on the same memory."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def host_bytes(tensor: torch.Tensor) -> bytes:
    """The bytes of a contiguous tensor in host memory, copied."""
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes) if tensor.nbytes else b""


def laid_out(plan: RecordPlan | Record, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The raw bytes of a record from those of its storages, all on one device; the gaps are zero."""
    zeros = torch.zeros(PACK_ALIGNMENT, dtype=torch.uint8, device=parts[0].device)
    pieces: list[torch.Tensor] = []
    at = 0
    for (_, offset, nbytes), part in zip(plan.storages, parts, strict=True):
        pieces += [zeros[: offset - at], part]
        at = offset + nbytes
    return torch.cat(pieces)


def work_of_digests(runs: Sequence[torch.Tensor], device: Device) -> tuple[Work, list[torch.Tensor]]:
    """The work that takes the leaf digests of these bytes on a device, in one launch.

    Returns:
        The work, and int64 [leaves] in host memory for each run; filled once the mark behind it has been waited for.
    """
    tables = [leaf_table(run.data_ptr(), run.numel()) for run in runs]
    addresses, sizes = (torch.cat(columns) for columns in zip(*tables, strict=True))
    if device.pinned:
        addresses, sizes = addresses.pin_memory(), sizes.pin_memory()
    here = torch.empty(len(addresses), dtype=torch.int64, device="cpu", pin_memory=device.pinned)

    def work() -> None:
        there = torch.empty(len(addresses), dtype=torch.int64, device=device.target)
        hash_leaves(addresses.to(device.target, non_blocking=True), sizes.to(device.target, non_blocking=True), there)
        here.copy_(there, non_blocking=True)

    return work, list(torch.split(here, [len(rows) for rows, _ in tables]))


class _Load(NamedTuple):
    """A slot that is being filled.

    Attributes:
        digests: Of each piece, on their way; None where the host hashes.
        marks: What must be waited for, and whose.
        kept: What the copies come from.
    """

    digests: list[torch.Tensor | None]
    marks: list[tuple[Device, Any]]
    kept: list[torch.Tensor]


class _Run(NamedTuple):
    """The raw bytes of a record.

    Attributes:
        raw: The bytes.
        device: What copies them; None: they are in host memory.
        still: Whether nobody can change them.
    """

    raw: torch.Tensor
    device: Device | None
    still: bool


class DeviceSupply:
    """The storages of a state that lie on devices, for the writer (a `content.Supply`).

    Args:
        storages: The bytes of all storages of the state, each uint8 [nbytes];
            those in host memory are used only where they share a record with one on a device.
        slots: Where the bytes go, if not into those of a ring. They must hold a chunk at least, and may
            be as large as the state: then the host hashes what could change.
        still: Whether nobody else can change what lies in the storages.
    """

    def __init__(
        self, storages: Sequence[torch.Tensor], slots: LendSlots | None = None, *, still: bool = False
    ) -> None:
        self._storages = storages
        self._slots = slots or ring_slots
        self._may_copy = slots is None
        self._still = still
        self._nbytes = sum(storage.numel() for storage in storages if on_device(storage))
        self._devices: dict[torch.device, Device] = {}

    def covers(self, plan: RecordPlan) -> bool:
        """Whether a record holds bytes that lie on a device."""
        return any(nbytes and on_device(self._storages[storage]) for storage, _, nbytes in plan.storages)

    @contextmanager
    def deliver(self, plans: Sequence[RecordPlan]) -> Iterator[Deliveries]:
        """See `content.Supply`."""
        first = next(s for plan in plans for s in plan.storages if s.nbytes and on_device(self._storages[s.storage]))
        with self._slots(self._storages[first.storage].device) as slots:
            try:
                yield _SlotLoads(self, plans, slots)
            finally:
                # Nothing may be on its way into a slot that is given back.
                for device in self._devices.values():
                    device.synchronize()

    def fill(
        self, parts: Sequence[LoadPart], slots: Slots, number: int, plans: Sequence[RecordPlan], runs: dict[int, _Run]
    ) -> _Load:
        """Queue the copies that fill a slot; ``runs`` has the records that go on, and gets them."""
        slot = slots[number]
        load = _Load([None] * len(parts), [], [])
        copies: dict[torch.device, list[int]] = {}
        hashed: dict[torch.device, list[int]] = {}
        for piece, (record, start, size, offset) in enumerate(parts):
            run = runs.pop(record, None) or self._run(plans[record])
            load.kept.append(run.raw[start : start + size])
            if run.device is None:
                slot[offset : offset + size].copy_(load.kept[-1])
            else:
                copies.setdefault(run.device.target, []).append(piece)
                if self._is_hashed_there(run, load):
                    hashed.setdefault(run.device.target, []).append(piece)
            if start + size < plans[record].raw_size:
                runs[record] = run
        for target, own in copies.items():
            device = self._devices[target]
            slots.lock(number, device)
            works: list[Work] = []
            if target in hashed:
                work, digests = work_of_digests([load.kept[piece] for piece in hashed[target]], device)
                works.append(work)
                for piece, table in zip(hashed[target], digests, strict=True):
                    load.digests[piece] = table
            to_slot = [(slot[parts[n].offset : parts[n].offset + parts[n].size], load.kept[n]) for n in own]
            load.marks.append((device, device.send(to_slot, works)))
        return load

    def _is_hashed_there(self, run: _Run, load: _Load) -> bool:
        """Whether the device takes the digests of the last piece of a load, of bytes that nobody changes by then."""
        assert run.device is not None, "it is not in host memory"
        engine = engine_now(run.device.target, "hash_kernel", nbytes=self._nbytes)
        if engine is None or engine.name != "triton":
            return False
        return run.still or (self._may_copy and _hold_still(run.device, load))

    def _device(self, target: torch.device) -> Device:
        if target not in self._devices:
            self._devices[target] = device_of(target)
        device = self._devices[target]
        device.take_over()
        return device

    def _run(self, plan: RecordPlan) -> _Run:
        """The raw bytes of a record, in one piece."""
        parts = [self._storages[packed.storage] for packed in plan.storages]
        if len(parts) == 1:
            return _Run(parts[0], self._device(parts[0].device), self._still)
        far = [bool(part.numel()) and on_device(part) for part in parts]
        homes = sorted({part.device for part, is_far in zip(parts, far, strict=True) if is_far}, key=str)
        if len(homes) == 1 and all(is_far or not part.numel() for part, is_far in zip(parts, far, strict=True)):
            raw = laid_out(plan, [part.to(homes[0]) for part in parts])
            return _Run(raw, self._device(homes[0]), still=True)
        # Storages of several devices in one record can only meet in host memory, and are hashed there.
        for home in homes:
            own = [number for number, part in enumerate(parts) if far[number] and part.device == home]
            together = torch.cat([parts[number] for number in own]).cpu()
            for number, part in zip(own, torch.split(together, [parts[n].numel() for n in own]), strict=True):
                parts[number] = part
        return _Run(laid_out(plan, [part.cpu() for part in parts]), None, still=True)


class _SlotLoads:
    """What passes through the slots of a supply (a `content.Deliveries`)."""

    def __init__(self, supply: DeviceSupply, plans: Sequence[RecordPlan], slots: Slots) -> None:
        self._supply = supply
        self._plans = plans
        self._slots = slots
        self._loads = slot_loads([plan.raw_size for plan in plans], slots[0].numel())
        self.apart = len(slots)
        self.turns = [
            [
                Delivery(part.record, part.start, part.size, slots[turn % len(slots)].data_ptr() + part.offset)
                for part in load
            ]
            for turn, load in enumerate(self._loads)
        ]
        self._runs: dict[int, _Run] = {}
        self._started = 0
        self._flying: deque[_Load] = deque()
        for _ in slots:
            self._start()

    def _start(self) -> None:
        if self._started < len(self._loads):
            slot = self._started % len(self._slots)
            self._flying.append(
                self._supply.fill(self._loads[self._started], self._slots, slot, self._plans, self._runs)
            )
            self._started += 1

    def wait(self) -> LeafDigests:
        """See `content.Deliveries`."""
        load = self._flying.popleft()
        for device, mark in load.marks:
            device.wait(mark)
        return [None if digests is None else host_bytes(digests) for digests in load.digests]

    def release(self) -> None:
        """See `content.Deliveries`."""
        self._start()


def _hold_still(device: Device, load: _Load) -> bool:
    """Let a copy on the device take the place of the last piece of a load; False if there is no memory for it."""
    try:
        (copy,) = device.allocate([load.kept[-1].numel()])
    except torch.OutOfMemoryError:
        return False
    device.send([(copy, load.kept[-1])])
    load.kept[-1] = copy
    return True


@contextmanager
def ring_slots(target: torch.device, ring: Ring | None = None) -> Iterator[Slots]:
    """The slots that loads use as well."""
    with borrowed_slots(ring or Ring(), device_of(target)) as slots:
        yield slots


def digests_of(raws: Sequence[torch.Tensor], *, threads: int) -> list[bytes]:
    """The leaf digests (u64 little-endian each) of contiguous uint8 tensors, computed where they lie.

    Where a device has no engine for that, its bytes pass through the slots and
    are hashed by ``threads`` threads, as those of host memory are.
    """
    results = [b""] * len(raws)
    near = [number for number, raw in enumerate(raws) if raw.numel() and not on_device(raw)]
    far = [number for number, raw in enumerate(raws) if raw.numel() and on_device(raw)]
    live = {
        target: device_of(target)
        for target in {raws[n].device for n in far}
        if engine_for(target, "hash_kernel").name == "triton"
    }
    queued: dict[int, torch.Tensor] = {}
    for target, device in live.items():
        own = [number for number in far if raws[number].device == target]
        device.take_over()
        work, digests = work_of_digests([raws[number] for number in own], device)
        device.send([], [work])
        queued |= zip(own, digests, strict=True)
    pieces = [Delivery(n, 0, raws[n].numel(), raws[n].data_ptr()) for n in near]
    for number, leaves in zip(near, _hashed(pieces, threads), strict=True):
        results[number] = leaves
    passing = [number for number in far if raws[number].device not in live]
    if passing:
        plans = [RecordPlan(raws[n].numel(), [PackedStorage(n, 0, raws[n].numel())]) for n in passing]
        with DeviceSupply(raws).deliver(plans) as brought:
            for turn in brought.turns:
                brought.wait()
                for piece, leaves in zip(turn, _hashed(turn, threads), strict=True):
                    results[passing[piece.record]] += leaves
                brought.release()
    for device in live.values():
        device.synchronize()
    results = [host_bytes(queued[number]) if number in queued else found for number, found in enumerate(results)]
    return results


def _hashed(pieces: Sequence[Delivery], threads: int) -> Iterator[bytes]:
    """The leaf digests of each of these pieces of memory."""
    moves = [Move(piece.address, 0, piece.size) for piece in pieces]
    leaves = transfer(moves, source=MEMORY, sink=NOWHERE, threads=threads).leaves if moves else memoryview(b"")
    at = 0
    for piece in pieces:
        end = at + count_leaves(piece.size) * 8
        yield bytes(leaves[at:end])
        at = end

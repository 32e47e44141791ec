"""An open checkpoint as what a writer takes its bytes from, piece after piece: no tensor is in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from fastckpt import _core
from fastckpt.constants import CHUNK_SIZE
from fastckpt.fckpt.content import Deliveries, Delivery, LeafDigests
from fastckpt.fckpt.slot_loads import Load, slot_loads
from fastckpt.io.memory import allocate
from fastckpt.io.pool import map_in_order
from fastckpt.layout.plan import RecordPlan
from fastckpt.stored.opened import Opened

SLOTS: Final = 3
SLOT_SIZE: Final = 16 * CHUNK_SIZE
"""What is in memory at a time: while one slot is read into, the others are written from."""
_PIECE: Final = 4 * CHUNK_SIZE
"""Bytes that a thread reads at once."""


class _Task(NamedTuple):
    """Bytes ``[start, end)`` of a storage, and where in a slot they go."""

    storage: int
    start: int
    end: int
    at: int


class OpenedSupply:
    """The storages of an open checkpoint, for the writer (a `content.Supply`); each is proven before it is written.

    Args:
        opened: The checkpoint.
        threads: Worker threads.
        numbers: For each storage of the `content.Content`, which one of the checkpoint it is; None if it has all of
            them under their numbers.
    """

    def __init__(self, opened: Opened, *, threads: int, numbers: Sequence[int] | None = None) -> None:
        self._opened = opened
        self._threads = threads
        self._numbers = range(len(opened.storage_sizes)) if numbers is None else numbers

    def covers(self, plan: RecordPlan) -> bool:
        """Whether there is anything to bring: all storages come from here."""
        return plan.raw_size > 0

    @contextmanager
    def deliver(self, plans: Sequence[RecordPlan]) -> Iterator[Deliveries]:
        """See `content.Supply`."""
        loads = slot_loads([plan.raw_size for plan in plans], SLOT_SIZE)
        yield _Slots(self._opened, self._numbers, plans, loads, self._threads)


class _Slots:
    """What passes through the slots (a `content.Deliveries`)."""

    def __init__(
        self,
        opened: Opened,
        numbers: Sequence[int],
        plans: Sequence[RecordPlan],
        loads: Sequence[Load],
        threads: int,
    ) -> None:
        self._opened = opened
        self._numbers = numbers
        self._plans = plans
        self._loads = loads
        self._threads = threads
        self._brought = 0
        size = max((part.offset + part.size for load in loads for part in load), default=0)
        self._slots = [allocate(size) for _ in loads[:SLOTS]]
        self.apart = SLOTS
        self.turns = [
            [Delivery(part.record, part.start, part.size, self._address(turn) + part.offset) for part in load]
            for turn, load in enumerate(loads)
        ]

    def _address(self, turn: int) -> int:
        return _core.address(self._slots[turn % SLOTS])

    def wait(self) -> LeafDigests:
        """See `content.Deliveries`."""
        load, slot = self._loads[self._brought], self._slots[self._brought % SLOTS]
        self._brought += 1
        tasks: list[_Task] = []
        for part in load:
            storages = self._plans[part.record].storages
            if len(storages) > 1:  # Between the storages of a pack are zeros.
                slot[part.offset : part.offset + part.size] = bytes(part.size)
            for packed, begin, nbytes in storages:
                storage = self._numbers[packed]
                low, high = max(begin, part.start), min(begin + nbytes, part.start + part.size)
                if low >= high:
                    continue
                if low == begin:
                    self._opened.prove(storage, threads=self._threads)
                at = part.offset + low - part.start
                tasks += _cut(storage, low - begin, high - begin, at)

        def read(task: _Task) -> None:
            raw = self._opened.read(task.storage, task.start, task.end)
            slot[task.at : task.at + task.end - task.start] = raw

        if len(tasks) == 1 or self._threads == 1:
            for task in tasks:
                read(task)
        else:
            for _ in map_in_order(read, tasks, threads=self._threads):
                pass
        return [None] * len(load)

    def release(self) -> None:
        """See `content.Deliveries`: the slot is filled when its next turn is waited for."""


def _cut(storage: int, start: int, end: int, at: int) -> Iterator[_Task]:
    for low in range(start, end, _PIECE):
        yield _Task(storage, low, min(low + _PIECE, end), at + low - start)

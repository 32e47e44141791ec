"""Devices for tests: CPU memory that behaves like a distant device, and ways to go wrong on the way there."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from fastckpt.staging.device import Copy, HostDevice, Work

POISON = 0xA5


class DelayedDevice(HostDevice):
    """Does everything later, on a thread of its own and in order.

    A slot that is refilled, or memory that is used, before its copy is done
    gives wrong bytes: nothing but the order of the pipeline protects it.
    """

    def __init__(self, delay: float = 0.002, seed: int = 0) -> None:
        super().__init__()
        self.allocated: list[int] = []
        self.most_marks = 0
        self.failure: BaseException | None = None
        self._marks = 0
        self._delay = delay
        self._random = random.Random(seed)
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            time.sleep(self._random.uniform(0, self._delay))
            try:
                job()
            except BaseException as error:
                self.failure = error

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def host_memory(self, nbytes: int) -> torch.Tensor:
        return torch.full((nbytes,), POISON, dtype=torch.uint8)

    def allocate(self, sizes: Sequence[int]) -> list[torch.Tensor]:
        self.allocated += sizes
        return [torch.full((size,), POISON, dtype=torch.uint8) for size in sizes]

    def send(self, copies: Sequence[Copy], works: Sequence[Work] = ()) -> threading.Event:
        for to, origin in copies:
            self._queue.put(lambda to=to, origin=origin: self.carry(to, origin))
        for work in works:
            self._queue.put(work)
        event = threading.Event()
        self._marks += 1
        self.most_marks = max(self.most_marks, self._marks)
        self._queue.put(event.set)
        return event

    def carry(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        destination.copy_(source)

    def has_passed(self, mark: threading.Event) -> bool:
        return mark.is_set()

    def wait(self, mark: threading.Event) -> None:
        mark.wait()
        self._marks -= 1

    def synchronize(self) -> None:
        event = threading.Event()
        self._queue.put(event.set)
        assert event.wait(30), "waited for after it was closed"
        self._marks = 0


class FlippingDevice(DelayedDevice):
    """Changes one bit in the middle of the ``number``-th copy (from 0) on its way."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def carry(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        destination.copy_(source)
        if self._number == 0:
            destination[len(destination) // 2] ^= 4
        self._number -= 1


@contextmanager
def delayed(device: DelayedDevice | None = None) -> Iterator[DelayedDevice]:
    """A delayed device; nothing may be queued any more when the block ends."""
    device = device or DelayedDevice()
    try:
        yield device
        assert device._queue.empty(), "work was left behind"
    finally:
        device.close()
        if device.failure is not None:
            raise device.failure

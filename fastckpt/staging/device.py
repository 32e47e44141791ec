"""What staging needs of a device: memory, copies that need no waiting for, and a way to wait for them.

`CudaDevice` is the only place in the package that speaks to ``torch.cuda``.
`HostDevice` does the same on CPU memory, each step at once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from fastckpt.errors import UsageError
from fastckpt.io.memory import allocate, allocate_regions

Range = tuple[int, int]
"""First byte and number of bytes."""


class Device(Protocol):
    """Where tensors are, and how bytes get there and back.

    Copies and work are queued: they happen in the order given, but when a call
    returns they may not have begun. Memory that takes part must stay until a
    mark set afterwards has been waited for.

    Attributes:
        target: The torch device.
        pinned: Whether host memory must be page-locked for fast copies.
    """

    target: torch.device
    pinned: bool

    def host_memory(self, nbytes: int) -> torch.Tensor:
        """Host memory (uint8) that this device copies from and to at full speed."""

    def allocate(self, sizes: Sequence[int]) -> list[torch.Tensor]:
        """Memory on the device (uint8, contents undefined), a storage of its own for each size."""

    def take_over(self) -> None:
        """Queue what follows behind everything the caller has queued on the device so far."""

    def copy(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        """Queue a copy, between host and device or on the device."""

    def then(self, work: Callable[[], object]) -> None:
        """Queue ``work`` (operations on device tensors) behind the copies so far; later copies do not wait for it."""

    def separate(self, memory: torch.Tensor, ranges: Sequence[Range]) -> list[torch.Tensor]:
        """Queue that each range of ``memory`` gets a storage of its own; returns these."""

    def mark(self) -> Any:
        """A point in the queue, behind all copies and work so far."""

    def wait(self, mark: Any) -> None:
        """Wait until everything before a mark has happened."""

    def synchronize(self) -> None:
        """Wait until everything queued has happened."""


class HostDevice:
    """CPU memory; also any other device that torch copies to, without overlap."""

    pinned = False

    def __init__(self, target: torch.device | None = None) -> None:
        self.target = target or torch.device("cpu")

    def host_memory(self, nbytes: int) -> torch.Tensor:
        return torch.frombuffer(allocate(nbytes), dtype=torch.uint8)

    def allocate(self, sizes: Sequence[int]) -> list[torch.Tensor]:
        if self.target.type != "cpu":
            return [torch.empty(size, dtype=torch.uint8, device=self.target) for size in sizes]
        regions = allocate_regions(list(sizes))
        return [
            torch.frombuffer(r, dtype=torch.uint8) if r.nbytes else torch.empty(0, dtype=torch.uint8, device="cpu")
            for r in regions
        ]

    def take_over(self) -> None:
        pass

    def copy(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        if self.target.type != "cpu":
            destination.copy_(source)
        else:
            # One thread: the others are busy filling slots.
            ctypes.memmove(destination.data_ptr(), source.data_ptr(), source.numel())

    def then(self, work: Callable[[], object]) -> None:
        work()

    def separate(self, memory: torch.Tensor, ranges: Sequence[Range]) -> list[torch.Tensor]:
        if self.target.type != "cpu":
            return [memory[start : start + nbytes].clone() for start, nbytes in ranges]
        # On the CPU a storage can begin anywhere: they share the memory, as after `fastckpt.load`.
        shared = (ctypes.c_ubyte * memory.numel()).from_address(memory.data_ptr())
        shared.owner = memory  # type: ignore[attr-defined]  # Whoever holds the buffer holds the memory.
        return [_bytes_at(shared, start, nbytes) for start, nbytes in ranges]

    def mark(self) -> None:
        return None

    def wait(self, mark: None) -> None:
        pass

    def synchronize(self) -> None:
        pass


def _bytes_at(memory: Any, start: int, nbytes: int) -> torch.Tensor:
    """A storage over ``nbytes`` bytes of a buffer, which stays alive with it."""
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    return torch.frombuffer(memory, dtype=torch.uint8, offset=start, count=nbytes)


class CudaDevice:
    """A CUDA device (or a ROCm one, which torch calls the same).

    Two streams beside the caller's own: copies run on one; checks and copies
    from one place on the device to another on the other, so that the next copy
    from the host does not wait for them. Memory comes from the caller's
    stream. It is handed out only after a mark behind its last use has been
    waited for, and held until then, so it needs no `record_stream`.
    """

    pinned = True

    def __init__(self, target: torch.device) -> None:
        index = torch.cuda.current_device() if target.index is None else target.index
        self.target = torch.device("cuda", index)
        self._copies = torch.cuda.Stream(self.target)  # type: ignore[no-untyped-call]
        self._checks = torch.cuda.Stream(self.target)  # type: ignore[no-untyped-call]

    def host_memory(self, nbytes: int) -> torch.Tensor:
        # The device is named because torch.set_default_device() may say another, which cannot be pinned.
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def allocate(self, sizes: Sequence[int]) -> list[torch.Tensor]:
        memories = [torch.empty(size, dtype=torch.uint8, device=self.target) for size in sizes]
        # A block that was freed before may still be in use by what the caller has queued.
        self.take_over()
        return memories

    def take_over(self) -> None:
        self._copies.wait_stream(torch.cuda.current_stream(self.target))

    def copy(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        with torch.cuda.stream(self._copies):
            destination.copy_(source, non_blocking=True)

    def then(self, work: Callable[[], object]) -> None:
        self._checks.wait_stream(self._copies)
        with torch.cuda.stream(self._checks):
            work()

    def separate(self, memory: torch.Tensor, ranges: Sequence[Range]) -> list[torch.Tensor]:
        own = self.allocate([nbytes for _, nbytes in ranges])
        filled = [(to, memory[start : start + n]) for to, (start, n) in zip(own, ranges, strict=True) if n]
        if filled:
            # One launch for thousands of tensors.
            self.then(lambda: torch._foreach_copy_([to for to, _ in filled], [part for _, part in filled]))
        return own

    def mark(self) -> Any:
        self._checks.wait_stream(self._copies)
        return self._checks.record_event()

    def wait(self, mark: Any) -> None:
        mark.synchronize()

    def synchronize(self) -> None:
        self._copies.synchronize()
        self._checks.synchronize()


def parse_device(device: str | torch.device) -> torch.device:
    """The torch device that a user named. Raises UsageError if torch knows none of that name."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError("no device is called so", expected="cpu, cuda or cuda:N", actual=repr(device)) from error


def device_of(target: torch.device) -> Device:
    """The device behind a torch device.

    Raises:
        UsageError: torch sees no CUDA device, or none of this number.
    """
    if target.type != "cuda":
        return HostDevice(target)
    if not torch.cuda.is_available():
        raise UsageError("torch sees no CUDA device", actual=str(target), next_step="load without device=")
    count = torch.cuda.device_count()
    if target.index is not None and target.index >= count:
        raise UsageError("there is no such CUDA device", expected=f"cuda:0 to cuda:{count - 1}", actual=str(target))
    return CudaDevice(target)

"""What staging needs of a device: memory, copies that need no waiting for, and a way to wait for them.

`CudaDevice`, and `page_lock` for it, speak to ``torch.cuda``.
`HostDevice` does the same on CPU memory, each step at once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]

from fastckpt.errors import UsageError
from fastckpt.io.memory import allocate, allocate_regions
from fastckpt.staging.page_lock import lock_pages

Range = tuple[int, int]
"""First byte and number of bytes."""
Copy = tuple[torch.Tensor, torch.Tensor]
"""Where to, and from where: contiguous, of one size and dtype."""
Work = Callable[[], object]
"""Operations on device tensors."""


class Device(Protocol):
    """Where tensors are, and how bytes get there and back.

    What is sent is queued: it happens in the order given, but when a call
    returns it may not have begun. Memory that takes part must stay until the
    mark behind it has been waited for.

    Attributes:
        target: The torch device.
        pinned: Whether it copies faster from and to host memory that is locked into place.
    """

    target: torch.device
    pinned: bool

    def host_memory(self, nbytes: int) -> torch.Tensor:
        """A little host memory (uint8) that this device copies from and to at full speed."""

    def lock(self, memory: memoryview) -> bool:
        """Lock memory of `fastckpt.io.memory.allocate` into place, where this device copies faster then.

        Returns:
            Whether `page_lock.unlock_pages` has to be called for it.
        """

    def allocate(self, sizes: Sequence[int]) -> list[torch.Tensor]:
        """Memory on the device (uint8, contents undefined), a storage of its own for each size."""

    def take_over(self) -> None:
        """Queue what is sent from now on behind everything the caller has queued on the device by then."""

    def send(self, copies: Sequence[Copy], works: Sequence[Work] = ()) -> Any:
        """Queue copies, between host and device or on the device, and ``works`` behind them and all sent before.

        Later copies do not wait for work.

        Returns:
            A mark: the point in the queue behind all of it.
        """

    def separate(self, memory: torch.Tensor, ranges: Sequence[Range]) -> list[torch.Tensor]:
        """Each range of ``memory`` as a storage of its own, which shares its memory where the device can do that."""

    def has_passed(self, mark: Any) -> bool:
        """Whether everything before a mark has happened; does not wait for it."""

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

    def lock(self, memory: memoryview) -> bool:
        return False

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

    def send(self, copies: Sequence[Copy], works: Sequence[Work] = ()) -> None:
        for to, origin in copies:
            if self.target.type != "cpu":
                to.copy_(origin)
            else:
                # One thread: the others are busy filling slots.
                ctypes.memmove(to.data_ptr(), origin.data_ptr(), origin.nbytes)
        for work in works:
            work()

    def separate(self, memory: torch.Tensor, ranges: Sequence[Range]) -> list[torch.Tensor]:
        if self.target.type != "cpu":
            return [memory[start : start + nbytes].clone() for start, nbytes in ranges]
        return [storage_at(memory, start, nbytes) for start, nbytes in ranges]

    def has_passed(self, mark: None) -> bool:
        return True

    def wait(self, mark: None) -> None:
        pass

    def synchronize(self) -> None:
        pass


def storage_at(memory: torch.Tensor, start: int, nbytes: int) -> torch.Tensor:
    """A storage of its own over ``nbytes`` bytes of memory (uint8), which stays alive with it.

    A torch storage can begin in the middle of an allocation only where memory comes from outside: by DLPack it does.
    """
    if not nbytes:
        return memory.new_empty(0)
    return from_dlpack(to_dlpack(memory[start : start + nbytes]))


class CudaDevice:
    """A CUDA device (or a ROCm one, which torch calls the same).

    Two streams beside the caller's own: copies run on one, work on the other,
    so that the next copy does not wait for it. Memory comes from the caller's
    stream. It is handed out only after a mark behind its last use has been
    waited for, and held until then, so it needs no `record_stream`.
    """

    pinned = True

    def __init__(self, target: torch.device) -> None:
        index = torch.cuda.current_device() if target.index is None else target.index
        self.target = torch.device("cuda", index)
        self._copies = torch.cuda.Stream(self.target)  # type: ignore[no-untyped-call]
        self._checks = torch.cuda.Stream(self.target)  # type: ignore[no-untyped-call]
        self._behind_caller = False

    def host_memory(self, nbytes: int) -> torch.Tensor:
        # The device is named because torch.set_default_device() may say another, which cannot be pinned.
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def lock(self, memory: memoryview) -> bool:
        return lock_pages(memory, self.target)

    def allocate(self, sizes: Sequence[int]) -> list[torch.Tensor]:
        # A block that was freed before may still be in use by what the caller has queued.
        self.take_over()
        return [torch.empty(size, dtype=torch.uint8, device=self.target) for size in sizes]

    def take_over(self) -> None:
        self._behind_caller = False

    def send(self, copies: Sequence[Copy], works: Sequence[Work] = ()) -> Any:
        if not self._behind_caller:
            self._copies.wait_stream(torch.cuda.current_stream(self.target))
            self._behind_caller = True
        with torch.cuda.stream(self._copies):
            for to, origin in copies:
                to.copy_(origin, non_blocking=True)
            mark = self._copies.record_event()
        if works:
            with torch.cuda.stream(self._checks):
                self._checks.wait_event(mark)
                for work in works:
                    work()
                mark = self._checks.record_event()
        return mark

    def separate(self, memory: torch.Tensor, ranges: Sequence[Range]) -> list[torch.Tensor]:
        return [storage_at(memory, start, nbytes) for start, nbytes in ranges]

    def has_passed(self, mark: Any) -> bool:
        return bool(mark.query())

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

"""A torch.cuda without a GPU that does everything as late, and in as odd an order, as a GPU may.

Memory is the CPU's. What is queued on a stream waits there until a random
schedule comes to it; only events and `wait_stream` hold it back. So a copy
that is not ordered behind what it must follow is seen sooner or later, and so
is memory that is used before anything was waited for. What it does not show is
memory that was freed too soon: what is queued keeps its tensors alive.
"""

from __future__ import annotations

import ctypes
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from leaf_oracle import oracle

import fastckpt.staging.check
import fastckpt.staging.device
import fastckpt.staging.fetching
import fastckpt.staging.page_lock
import fastckpt.staging.stage
from fastckpt.kernels import xxh3
from fastckpt.kernels.dispatch import Engine

POISON = 0xA5


class Event:
    """A point in a stream."""

    def __init__(self, cuda: LazyCuda) -> None:
        self.cuda = cuda
        self.reached = False

    def query(self) -> bool:
        self.cuda.run_some()
        return self.reached

    def synchronize(self) -> None:
        self.cuda.run_until(lambda: self.reached)


class Stream:
    """Work in the order it was given."""

    def __init__(self, cuda: LazyCuda) -> None:
        self.cuda = cuda
        self.queue: deque[Event | Callable[[], object]] = deque()
        cuda.streams.append(self)

    def add(self, work: Callable[[], object]) -> None:
        self.queue.append(work)
        self.cuda.run_some()

    def record_event(self) -> Event:
        event = Event(self.cuda)
        self.queue.append(lambda: setattr(event, "reached", True))
        return event

    def wait_event(self, event: Event) -> None:
        self.queue.append(event)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def synchronize(self) -> None:
        self.record_event().synchronize()

    def step(self) -> bool:
        """Do the next thing, if it need not wait."""
        if not self.queue or (isinstance(self.queue[0], Event) and not self.queue[0].reached):
            return False
        work = self.queue.popleft()
        if not isinstance(work, Event):
            work()
        return True


class LazyCuda:
    """What stands in for torch.cuda; ``caller`` is the stream of whoever calls fastckpt."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.streams: list[Stream] = []
        self.caller = self.current = Stream(self)

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def Stream(self, device: torch.device) -> Stream:
        return Stream(self)

    def current_stream(self, device: torch.device) -> Stream:
        return self.current

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        yield

    def cudart(self) -> LazyCuda:
        return self

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        return 0

    def run_some(self) -> None:
        """Most of the time nothing happens, as if the device were far behind."""
        for _ in range(self.random.choice([0, 0, 0, 3])):
            self.random.choice(self.streams).step()

    def run_until(self, done: Callable[[], bool]) -> None:
        while not done():
            order = self.random.sample(self.streams, len(self.streams))
            assert any(stream.step() for stream in order), "everything waits for something that never comes"


class _Torch:
    """The torch module with some names replaced."""

    def __init__(self, **replaced: Any) -> None:
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _digests(addresses: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    leaves = [ctypes.string_at(*row) for row in zip(addresses.tolist(), sizes.tolist(), strict=True)]
    return torch.tensor([xxh3.signed(oracle(leaf)[0]) for leaf in leaves], dtype=torch.int64)


def install(patch: pytest.MonkeyPatch, seed: int) -> LazyCuda:
    """Let `CudaDevice` work on a lazy device, with an engine that hashes there."""
    cuda = LazyCuda(seed)
    copy, foreach = torch.Tensor.copy_, torch._foreach_copy_

    def empty(size: int, *, dtype: torch.dtype, device: object, pin_memory: bool = False) -> torch.Tensor:
        memory = torch.full((size,), 0, dtype=dtype)
        if size and not pin_memory:
            # It was used before, and what the caller has queued may still write to it.
            cuda.current.add(lambda: memory.fill_(POISON))
        return memory

    def copy_(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        cuda.current.add(lambda: copy(self, source)) if non_blocking else copy(self, source)
        return self

    def hash_leaves(addresses: torch.Tensor, sizes: torch.Tensor, out: torch.Tensor) -> None:
        cuda.current.add(lambda: copy(out, _digests(addresses, sizes)))

    def check_leaves(addresses: torch.Tensor, sizes: torch.Tensor, expected: torch.Tensor, bad: torch.Tensor) -> None:
        cuda.current.add(lambda: copy(bad, _digests(addresses, sizes) != expected))

    patch.setattr(torch.Tensor, "copy_", copy_)
    patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    patch.setattr(torch, "_foreach_copy_", lambda to, parts: cuda.current.add(lambda: foreach(to, parts)))
    fake = _Torch(cuda=cuda, empty=empty)
    patch.setattr(fastckpt.staging.device, "torch", fake)
    patch.setattr(fastckpt.staging.page_lock, "torch", fake)
    patch.setattr(fastckpt.staging.fetching, "torch", fake)
    patch.setattr(fastckpt.staging.fetching, "hash_leaves", hash_leaves)
    patch.setattr(fastckpt.staging.check, "check_leaves", check_leaves)
    for module in (fastckpt.staging.fetching, fastckpt.staging.stage):
        for ask in ("engine_for", "engine_now"):
            patch.setattr(module, ask, lambda *_, **__: Engine("triton", "for this test"))
    return cuda

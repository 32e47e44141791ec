"""The calls that `CudaDevice` makes, in order, against a torch.cuda that writes them down."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from states import assert_same, everything, pattern

import fastckpt
from fastckpt.errors import UsageError
from fastckpt.loading.stream import load_through
from fastckpt.staging import device as device_module
from fastckpt.staging import page_lock
from fastckpt.staging import ring as ring_module
from fastckpt.staging.device import CudaDevice, device_of
from fastckpt.staging.ring import borrowed_slots
from fastckpt.staging.stage import staging_for

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


class Stream:
    def __init__(self, log: list[str], name: str) -> None:
        self.log = log
        self.name = name

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> Any:
        self.log.append(f"event on {self.name}")
        wait = functools.partial(self.log.append, f"host waits for event on {self.name}")
        return SimpleNamespace(query=lambda: False, synchronize=wait, name=self.name)

    def wait_event(self, event: Any) -> None:
        self.log.append(f"{self.name} waits for event on {event.name}")

    def synchronize(self) -> None:
        self.log.append(f"host waits for {self.name}")


class Cuda:
    """What `CudaDevice` uses of torch.cuda; work runs at once."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.names = iter(["copies", "checks"])
        self.current = Stream(log, "caller")

    def current_device(self) -> int:
        return 0

    def Stream(self, device: torch.device) -> Stream:
        assert device == torch.device("cuda", 0)
        return Stream(self.log, next(self.names))

    def current_stream(self, device: torch.device) -> Stream:
        return self.current

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        yield

    def cudart(self) -> Cuda:
        return self

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.log.append(f"lock {size}")
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        self.log.append("unlock")
        return 0

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.log.append(f"on {stream.name}")
        before, self.current = self.current, stream
        yield
        self.current = before


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The log; memory is the CPU's, and pinned memory is only noted."""
    log: list[str] = []

    def empty(size: int, *, dtype: torch.dtype, device: object, pin_memory: bool = False) -> torch.Tensor:
        # Without a device it is torch's default one, which a program may have set to a GPU.
        assert str(device) == ("cpu" if pin_memory else "cuda:0")
        log.append(f"pin {size}" if pin_memory else f"allocate {size}")
        return torch.full((size,), 0xA5, dtype=dtype)

    fake = SimpleNamespace(
        cuda=Cuda(log),
        device=torch.device,
        uint8=torch.uint8,
        empty=empty,
        Tensor=torch.Tensor,
    )
    monkeypatch.setattr(device_module, "torch", fake)
    monkeypatch.setattr(page_lock, "torch", fake)
    monkeypatch.setattr(ring_module, "_idle", {})
    return log


def test_order_of_calls(tmp_path: Path, calls: list[str]) -> None:
    state = {"large": pattern(500_000), **{f"small.{i}": pattern(10 + i) for i in range(3)}}
    fastckpt.save(state, tmp_path / "s")
    device = CudaDevice(torch.device("cuda"))
    how = staging_for(device, ring=fastckpt.Ring(2, 256 * 1024), verify="host")
    assert_same(load_through(tmp_path / "s", how, None), state)
    assert calls == [
        # A slot is locked when its turn comes: by then all of them are being filled.
        "lock 262144",
        # The large storage takes both. Its memory may still be in use by the caller.
        *["allocate 500000", "copies waits for caller", "on copies", "event on copies"],
        "lock 262144",
        # The rest of it and the small ones, which share the memory they arrive in.
        *["allocate 140", "copies waits for caller", "on copies", "event on copies"],
        *["host waits for event on copies"] * 2,
        # All is over before the slots are given back.
        "host waits for copies",
        "host waits for checks",
    ]


def test_work_follows_the_copies_of_its_turn(calls: list[str]) -> None:
    device = CudaDevice(torch.device("cuda"))
    here, there = torch.ones(8, dtype=torch.uint8), torch.zeros(8, dtype=torch.uint8)
    device.wait(device.send([(there, here)] * 3, [lambda: calls.append("work")] * 2))
    assert calls == [
        *["copies waits for caller", "on copies", "event on copies"],
        *["on checks", "checks waits for event on copies", "work", "work", "event on checks"],
        "host waits for event on checks",
    ]
    assert torch.equal(here, there)


def test_slots_made_in_inference_mode_serve_outside_of_it(tmp_path: Path, calls: list[str]) -> None:
    """A tensor that was made in inference mode cannot be written to in any other."""
    ring = fastckpt.Ring(2, 48 * 1024)
    device = CudaDevice(torch.device("cuda"))
    with torch.inference_mode(), borrowed_slots(ring, device) as slots:
        assert not any(slot.is_inference() for slot in slots)
    with borrowed_slots(ring, device) as again:
        device.send([(again[0], slots[1])])
    assert [slot.data_ptr() for slot in again] == [slot.data_ptr() for slot in slots]


def test_slots_stay_locked_from_one_transfer_to_the_next(tmp_path: Path, calls: list[str]) -> None:
    fastckpt.save({"a": pattern(500_000)}, tmp_path / "s", durable=False)
    device = CudaDevice(torch.device("cuda"))
    small = staging_for(device, ring=fastckpt.Ring(4, 64 * 1024), verify="host")
    for keys in (None, None):
        load_through(tmp_path / "s", small, keys)
    assert calls.count("lock 65536") == 4
    assert "unlock" not in calls
    load_through(tmp_path / "s", staging_for(device, ring=fastckpt.Ring(2, 1 << 20), verify="host"), None)
    assert calls.count("unlock") == 4, "a ring of another kind takes their place"
    assert calls.count(f"lock {1 << 20}") == 1, "what one turn needs"
    assert ring_module._lent == []


def test_two_rings_that_come_back(calls: list[str]) -> None:
    """One of them is kept."""
    device = CudaDevice(torch.device("cuda"))
    rings = [fastckpt.Ring(1, 64 * 1024), fastckpt.Ring(2, 32 * 1024)]
    with borrowed_slots(rings[0], device) as one, borrowed_slots(rings[1], device) as two:
        one.lock(0, device)
        one.lock(0, device)
        two.lock(1, device)
    assert calls == ["lock 65536", "lock 32768", "unlock"]
    assert ring_module._idle[True][1] is one


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="no such CUDA device") as caught:
        device_of(torch.device("cuda", 2))
    assert (caught.value.expected, caught.value.actual) == ("cuda:0 to cuda:1", "cuda:2")


def test_results(tmp_path: Path, calls: list[str]) -> None:
    state = everything()
    fastckpt.save(state, tmp_path / "s", codec="zstd")
    for ring in (fastckpt.Ring(1, 16384), fastckpt.Ring(4, 1 << 20)):
        device_module.torch.cuda.names = iter(["copies", "checks"])  # type: ignore[assignment]
        how = staging_for(CudaDevice(torch.device("cuda")), ring=ring, verify="host")
        assert_same(load_through(tmp_path / "s", how, None), state)

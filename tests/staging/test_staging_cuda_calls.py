"""The calls that `CudaDevice` makes, in order, against a torch.cuda that writes them down."""

from __future__ import annotations

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
        return SimpleNamespace(synchronize=lambda: self.log.append(f"host waits for event on {self.name}"))

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
        _foreach_copy_=lambda to, parts: (log.append(f"{len(to)} small copies"), torch._foreach_copy_(to, parts)),
    )
    monkeypatch.setattr(device_module, "torch", fake)
    return log


def test_order_of_calls(tmp_path: Path, calls: list[str]) -> None:
    state = {"large": pattern(500_000), **{f"small.{i}": pattern(10 + i) for i in range(3)}}
    fastckpt.save(state, tmp_path / "s")
    device = CudaDevice(torch.device("cuda"))
    how = staging_for(device, ring=fastckpt.Ring(2, 256 * 1024), verify="host")
    assert_same(load_through(tmp_path / "s", how, None), state)
    slot = ["on copies", "checks waits for copies", "event on checks"]
    assert calls == [
        *["pin 262144"] * 2,
        "copies waits for caller",
        # The large storage in two slots. Its memory may still be in use by the caller.
        "allocate 500000",
        "copies waits for caller",
        *slot,
        # The rest of it, then the small ones: memory they share on the way, then some of their own.
        "on copies",
        "allocate 140",
        "copies waits for caller",
        "on copies",
        *["allocate 10", "allocate 11", "allocate 12"],
        "copies waits for caller",
        "checks waits for copies",
        "on checks",
        "3 small copies",
        "checks waits for copies",
        "event on checks",
        *["host waits for event on checks"] * 2,
        # All is over before the slots are given back.
        "host waits for copies",
        "host waits for checks",
    ]


def test_slots_made_in_inference_mode_serve_outside_of_it(tmp_path: Path, calls: list[str]) -> None:
    """A tensor that was made in inference mode cannot be written to in any other."""
    ring = fastckpt.Ring(2, 48 * 1024)
    device = CudaDevice(torch.device("cuda"))
    with torch.inference_mode(), borrowed_slots(ring, device) as slots:
        assert not any(slot.is_inference() for slot in slots)
    with borrowed_slots(ring, device) as again:
        device.copy(again[0], slots[1])
    assert [slot.data_ptr() for slot in again] == [slot.data_ptr() for slot in slots]


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

"""A tensor that changes while it is saved is torn, and the file is whole: the digests are those of what was written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from fake_device import device_engine, pretend

import fastckpt
from fastckpt.staging.device import Copy, HostDevice, Work
from fastckpt.staging.ring import Ring

State = dict[str, torch.Tensor]


@contextmanager
def changing(tensors: State) -> Iterator[None]:
    """Another thread writes to the tensors all the while."""
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            for tensor in tensors.values():
                tensor.add_(1)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def large() -> State:
    return {"weight": torch.zeros(3_000_000), "bias": torch.zeros(1_000_001)}


def small() -> State:
    """So small that they share packs."""
    return {f"layer.{number}": torch.zeros(3000) for number in range(400)}


@pytest.mark.parametrize("make", [large, small])
@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
@pytest.mark.parametrize("durable", [True, False])
def test_a_save_that_returns_is_loadable(tmp_path: Path, make: Callable[[], State], codec: str, durable: bool) -> None:
    state = make()
    path = tmp_path / "state.fckpt"
    with changing(state):
        for _ in range(6):
            fastckpt.save(state, path, codec=codec, durable=durable)
            assert fastckpt.verify(path).ok
            assert fastckpt.load(path).keys() == state.keys()


def test_the_same_of_a_save_in_the_background(tmp_path: Path) -> None:
    state = large()
    path = tmp_path / "state.fckpt"
    with changing(state):
        for _ in range(4):
            fastckpt.save_async(state, path, durable=False).result()
            assert fastckpt.verify(path).ok


@pytest.mark.parametrize("make", [large, small])
@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
@pytest.mark.parametrize("how", ["save", "snapshot in host memory", "snapshot on the device", "device without memory"])
def test_the_same_of_what_lies_on_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], State], codec: str, how: str
) -> None:
    """Another stream changes a tensor between its digests and its copy, each time anew."""
    pretend(monkeypatch, ring=Ring(slots=2, slot_size=2 * 2**20))
    device_engine(monkeypatch)
    state = make()
    send, allocate = HostDevice.send, HostDevice.allocate

    def send_and_change(self: HostDevice, copies: Sequence[Copy], works: Sequence[Work] = ()) -> None:
        for queued in (*(([pair], []) for pair in copies), *(([], [work]) for work in works)):
            for tensor in state.values():
                tensor.add_(1)
            send(self, *queued)

    def no_memory(self: HostDevice, sizes: Sequence[int]) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(HostDevice, "send", send_and_change)
    monkeypatch.setattr(HostDevice, "allocate", no_memory if how == "device without memory" else allocate)
    path = tmp_path / "state.fckpt"
    if "snapshot" in how:
        where = "device" if how == "snapshot on the device" else "host"
        fastckpt.save_async(state, path, codec=codec, durable=False, snapshot=where).result()
    else:
        fastckpt.save(state, path, codec=codec, durable=False)
    assert fastckpt.verify(path).ok
    assert fastckpt.load(path).keys() == state.keys()

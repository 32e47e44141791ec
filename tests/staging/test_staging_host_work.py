"""The host does the same for a turn of a hundred tensors as for one of a few: one copy, one table, one launch."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

import fastckpt.staging.check
from fastckpt.constants import LEAF_SIZE
from fastckpt.io.memory import allocate
from fastckpt.staging.check import LeafCheck
from fastckpt.staging.device import Copy, HostDevice, Work
from fastckpt.staging.pipeline import FLIGHTS, Pipeline
from fastckpt.staging.regions import Part, Placed, Region, Suspect, cut, joined
from fastckpt.staging.ring import Slots
from fastckpt.staging.stage import FreshStorages

SLOT = 1 << 20
TURNS = 12


class Calls(TorchFunctionMode):
    """Counts what torch is asked for."""

    count = 0

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.count += 1
        return function(*arguments, **(named or {}))


class Counting(HostDevice):
    """Copies nothing, and counts what is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = torch.zeros(2 * SLOT, dtype=torch.uint8)
        self.allocations = self.copies = self.works = self.sent = 0

    def allocate(self, sizes: Sequence[int]) -> list[torch.Tensor]:
        self.allocations += len(sizes)
        return [self.memory[:size] for size in sizes]

    def send(self, copies: Sequence[Copy], works: Sequence[Work] = ()) -> None:
        self.sent += 1
        self.copies += len(copies)
        self.works += len(works)
        for work in works:
            work()


class Full:
    """Slots that are always full."""

    def wait(self, turn: int) -> list[Suspect]:
        return []

    def release(self) -> None:
        pass

    def close(self) -> None:
        pass


def of_turn(nbytes: int) -> list[Region]:
    """Regions of this size, as many as a dozen slots hold."""
    record: Any = SimpleNamespace(is_raw=True, leaves=memoryview(bytes(8 * (nbytes // LEAF_SIZE))))
    count = TURNS * SLOT // nbytes
    return [Region(nbytes, [Placed(n, 0, nbytes)], [Part(0, 0, nbytes, record, 0)]) for n in range(count)]


def per_turn(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> tuple[int, Counting]:
    """What a load of such regions costs."""
    monkeypatch.setattr(fastckpt.staging.check, "check_leaves", lambda *columns: columns[-1].zero_())
    device = Counting()
    destination = FreshStorages(device)
    regions = of_turn(nbytes)
    turns = cut(joined(regions, SLOT, destination.alone), SLOT)
    assert len(turns) == TURNS
    check = LeafCheck(device, turns, FLIGHTS)
    device.allocations = device.copies = device.sent = 0
    slots = Slots([allocate(SLOT) for _ in range(3)])
    with Calls() as calls:
        flow = Pipeline(turns, slots, Full(), device, destination, None, check, lambda count: None)
        arrived = [arrival.region for arrival in flow]
    assert sum(len(region.placed) for region in arrived) == len(regions)
    return calls.count, device


def test_calls_of_torch_do_not_grow_with_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    few, of_few = per_turn(monkeypatch, SLOT // 4)
    many, of_many = per_turn(monkeypatch, SLOT // 64)
    assert many == few < 20 * TURNS
    for device in (of_few, of_many):
        assert (device.sent, device.works, device.allocations) == (TURNS, TURNS, TURNS)
        assert device.copies == 2 * TURNS, "the bytes of the turn, and the addresses of its leaves"

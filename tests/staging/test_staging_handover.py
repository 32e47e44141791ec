"""Proof in the slots until the device can give it: whenever that is, each leaf is proven, and by what is said to be."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch
from delayed import DelayedDevice, FlippingDevice, delayed
from states import assert_same, compressible, pattern

import fastckpt
import fastckpt.staging.check
from fastckpt import _core
from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import DamagedError
from fastckpt.kernels.dispatch import Engine
from fastckpt.loading.stream import load_through, stream_through
from fastckpt.staging import stage
from fastckpt.staging.stage import staging_for

RING = fastckpt.Ring(2, 4 * LEAF_SIZE)
TURNS, LEAVES = 8, 33
LIVE, WRONG = Engine("triton", "for this test"), Engine("host", "it gives wrong digests")
NEVER = 10**6


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight turns of four leaves: a large storage, and behind it small ones that share a record."""
    directory = tmp_path_factory.mktemp("handover")
    for codec, make in (("none", pattern), ("zstd", compressible)):
        state = {"large": make(31 * LEAF_SIZE + 100), "small.a": pattern(500), "small.b": pattern(700, 1)}
        fastckpt.save(state, directory / codec, codec=codec, durable=False)
    return directory


class Asked:
    """A device whose engine is known at the ``when``-th question, and what its kernel checked."""

    def __init__(self, patch: pytest.MonkeyPatch, when: int, engine: Engine = LIVE) -> None:
        self.left, self.engine = when, engine
        self.leaves = self.questions = 0
        patch.setattr(stage, "engine_now", self.ask)
        patch.setattr(fastckpt.staging.check, "check_leaves", self.check)

    def ask(self, *_: object, **__: object) -> Engine | None:
        self.questions += 1
        self.left -= 1
        return self.engine if self.left < 0 else None

    def check(self, addresses: torch.Tensor, sizes: torch.Tensor, expected: torch.Tensor, bad: torch.Tensor) -> None:
        self.leaves += len(addresses)
        for row, (address, size) in enumerate(zip(addresses.tolist(), sizes.tolist(), strict=True)):
            digest = _core.leaf_digests(ctypes.string_at(address, size))
            bad[row] = int(int.from_bytes(digest, "little", signed=True) != expected[row])


def load(path: Path, device: DelayedDevice) -> Any:
    return load_through(path, staging_for(device, ring=RING, threads=2), None)


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("when", [0, 1, 2, 5, TURNS - 1, TURNS, NEVER])
def test_whenever_it_is_ready(files: Path, monkeypatch: pytest.MonkeyPatch, codec: str, when: int) -> None:
    asked = Asked(monkeypatch, when)
    with delayed(DelayedDevice(0.0005)) as device:
        assert_same(load(files / codec, device), fastckpt.load(files / codec))
    # Asked before the first turn and with each one. The two that have a slot by then are proven there; the turn
    # before this one may have landed or not.
    firsts = {min(max(when + landed, RING.slots), TURNS) for landed in (0, 1)} if when else {0}
    assert asked.leaves in {LEAVES - 4 * first if first < TURNS else 0 for first in firsts}
    assert asked.questions == min(when, TURNS) + 1, "and it is not asked again"


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("when", [0, 2, NEVER])
def test_every_leaf_is_proven_by_one_of_the_two(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, when: int
) -> None:
    with fastckpt.open(files / codec) as ck:
        payloads = [record.payload for record in ck._file.records]
    step = 2 * LEAF_SIZE if codec == "none" else payloads[0].size // 7
    places = [*range(payloads[0].offset + 50, payloads[0].end, step), payloads[1].offset + 5]
    for place in places:
        raw = bytearray((files / codec).read_bytes())
        raw[place] ^= 1
        (tmp_path / "bad").write_bytes(raw)
        with pytest.raises(DamagedError) as expected:
            fastckpt.load(tmp_path / "bad")
        Asked(monkeypatch, when)
        with delayed(DelayedDevice(0)) as device, pytest.raises(DamagedError) as caught:
            load(tmp_path / "bad", device)
        assert str(caught.value) == str(expected.value)


@pytest.mark.parametrize(("when", "found"), [(0, True), (1, True), (NEVER, False)])
def test_the_way_to_the_device_is_proven_from_then_on(
    files: Path, monkeypatch: pytest.MonkeyPatch, when: int, found: bool
) -> None:
    """In the last turn of the large storage."""
    Asked(monkeypatch, when)
    # Besides the seven before: what is known of all leaves, and the addresses of each turn from the first or third on.
    others = {0: 2 + 7, 1: 2 + 5, NEVER: 0}[when]
    with delayed(FlippingDevice(7 + others)) as device:
        if found:
            with pytest.raises(DamagedError, match="leaf 29 was damaged on its way to the device"):
                load(files / "none", device)
        else:
            load(files / "none", device)


@pytest.mark.parametrize("when", [0, 3])
def test_a_kernel_that_disagrees_proves_nothing(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    raw = bytearray((files / "none").read_bytes())
    raw[-3 * 4096 - 20 * LEAF_SIZE] ^= 1
    (tmp_path / "bad").write_bytes(raw)
    for path, fails in ((files / "none", False), (tmp_path / "bad", True)):
        asked = Asked(monkeypatch, when, WRONG)
        with delayed(DelayedDevice(0)) as device:
            try:
                assert_same(load(path, device), fastckpt.load(files / "none"))
                assert not fails
            except DamagedError:
                assert fails
        assert asked.leaves == 0


def test_a_stream_that_is_closed_around_it(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for when in range(4):
        Asked(monkeypatch, when)
        with delayed(DelayedDevice(0)) as device:
            tensors = stream_through(files / "none", staging_for(device, ring=RING), None)
            assert next(tensors)[0] == "large"
            tensors.close()


@pytest.mark.parametrize("where", ["before", "after"])
def test_no_memory_for_its_tables(files: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """An error like any other: everything has ended when it comes out."""
    Asked(monkeypatch, 0 if where == "before" else 2)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(fastckpt.staging.check, "_known", fail)
    with delayed(DelayedDevice(0)) as device, pytest.raises(torch.OutOfMemoryError):
        load(files / "none", device)


@pytest.mark.parametrize("kind", ["pt", "verify=False", "verify='host'"])
def test_what_is_not_for_the_device_asks_for_no_kernel(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    asked = Asked(monkeypatch, 0)
    verify: Any = {"pt": True, "verify=False": False, "verify='host'": "host"}[kind]
    path = files / "none"
    if kind == "pt":
        path = tmp_path / "m.pt"
        torch.save(fastckpt.load(files / "none"), path)
    with delayed(DelayedDevice(0)) as device:
        load_through(path, staging_for(device, ring=RING, verify=verify), None)
    assert asked.questions == 0

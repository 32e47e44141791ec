"""Saves of tensors on a device: the same file, byte for byte, through a few slots."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_device import device_engine, nbytes_of, pretend
from states import everything, pattern

import fastckpt
import fastckpt.staging.fetching
from fastckpt.constants import CHUNK_SIZE, LEAF_SIZE
from fastckpt.errors import DamagedError
from fastckpt.fckpt.content import Delivery
from fastckpt.layout.blocks import align
from fastckpt.staging.fetching import slot_loads
from fastckpt.staging.ring import Ring

MIB = 2**20
SMALL_RING = Ring(slots=2, slot_size=2 * MIB)
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def state() -> dict[str, object]:
    """Everything there is, and storages that need several slots."""
    base = pattern(5 * MIB + 12345, 1)
    wide = pattern(300 * 1024, 2).view(torch.int32)
    return {"all": everything(), "large": base, "view": base[100:5000].view(70, 70), "wide": wide, "again": wide[3:]}


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("far", ["all", "large ones", "small ones", "every third"])
def test_the_file_does_not_depend_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, far: str
) -> None:
    fastckpt.save(state(), tmp_path / "host", codec=codec, durable=False)
    choose = {
        "all": lambda memory: True,
        "large ones": lambda memory: nbytes_of(memory) >= 256 * 1024,
        "small ones": lambda memory: nbytes_of(memory) < 256 * 1024,
        "every third": lambda memory: nbytes_of(memory) % 3 == 0,
    }[far]
    pretend(monkeypatch, choose, ring=SMALL_RING)
    done: list[int] = []
    fastckpt.save(state(), tmp_path / "device", codec=codec, durable=False, progress=done.append)
    assert (tmp_path / "device").read_bytes() == (tmp_path / "host").read_bytes()
    assert done == sorted(done)
    assert done[-1] >= 5 * MIB


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_digests_come_from_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    fastckpt.save(state(), tmp_path / "host", codec=codec, durable=False)
    pretend(monkeypatch, ring=SMALL_RING)
    device_engine(monkeypatch)
    fastckpt.save(state(), tmp_path / "device", codec=codec, durable=False)
    assert (tmp_path / "device").read_bytes() == (tmp_path / "host").read_bytes()


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_wrong_copy_does_not_match_its_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    pretend(monkeypatch, ring=SMALL_RING)
    device_engine(monkeypatch)
    deliver = fastckpt.staging.fetching.DeviceSupply.deliver

    def deliver_wrong(self: fastckpt.staging.fetching.DeviceSupply, plans: object) -> Iterator[list[Delivery]]:
        for pieces in deliver(self, plans):  # type: ignore[arg-type]
            for piece in pieces:
                if piece.start == SMALL_RING.slot_size:
                    ctypes.memset(piece.address + LEAF_SIZE + 7, 0, 1)
            yield pieces

    monkeypatch.setattr(fastckpt.staging.fetching.DeviceSupply, "deliver", deliver_wrong)
    fastckpt.save({"large": torch.full((5 * MIB,), 7, dtype=torch.uint8)}, tmp_path / "s", codec=codec, durable=False)
    with pytest.raises(DamagedError, match="large") as caught:
        fastckpt.load(tmp_path / "s")
    assert caught.value.chunk == 2
    (finding,) = fastckpt.verify(tmp_path / "s").findings
    assert (finding.leaf, finding.leaves) == (SMALL_RING.slot_size // LEAF_SIZE + 1, 1)


def test_an_error_in_the_middle_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fastckpt.save(state(), tmp_path / "s", durable=False)
    old = (tmp_path / "s").read_bytes()
    pretend(monkeypatch, ring=SMALL_RING)
    turns: list[int] = []

    def enough(done: int) -> None:
        turns.append(done)
        if done > 3 * MIB:
            raise RuntimeError("enough")

    for _ in range(2):  # The second time with the slots that the first one gave back.
        with pytest.raises(RuntimeError, match="enough"):
            fastckpt.save(state(), tmp_path / "s", progress=enough, durable=False)
        assert max(turns) < 8 * MIB
        assert (tmp_path / "s").read_bytes() == old
        assert [path.name for path in tmp_path.iterdir()] == ["s"]
    fastckpt.save(state(), tmp_path / "s", durable=False)
    assert (tmp_path / "s").read_bytes() == old


@pytest.mark.parametrize("capacity", [CHUNK_SIZE, 2 * CHUNK_SIZE, 4 * CHUNK_SIZE])
def test_slot_loads_cover_every_byte_once(capacity: int) -> None:
    sizes = [1, 0, 300_000, 5 * CHUNK_SIZE + 17, LEAF_SIZE, 4096, 3 * CHUNK_SIZE, CHUNK_SIZE - 1]
    done = [0] * len(sizes)
    for load in slot_loads(sizes, capacity):
        end = 0
        for part in load:
            assert part.start == done[part.record]
            assert part.start % CHUNK_SIZE == 0
            assert part.offset >= end
            assert part.offset % 4096 == 0
            end = part.offset + part.size
            assert end <= capacity
            done[part.record] += part.size
    assert done == sizes
    assert len(slot_loads(sizes, sum(map(align, sizes)))) == 1


def test_with_the_real_kernel_in_its_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    code = """
import sys, pytest, torch, fastckpt
from fake_device import pretend
from fastckpt.kernels.dispatch import engine_for
assert engine_for("cpu").name == "triton", engine_for("cpu").why
state = {"large": torch.arange(70_000), "small": [torch.full((i,), i) for i in range(20)]}
fastckpt.save(state, sys.argv[1] + "/host")
with pytest.MonkeyPatch.context() as patch:
    pretend(patch)
    fastckpt.save(state, sys.argv[1] + "/device")
    assert fastckpt.verify_tensors(state, sys.argv[1] + "/host").findings == []
    state["large"][12345] += 1
    print(fastckpt.verify_tensors(state, sys.argv[1] + "/host").findings[0].leaf)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) == 12345 * 8 // LEAF_SIZE
    assert (tmp_path / "device").read_bytes() == (tmp_path / "host").read_bytes()

"""Saves of tensors on a device: the same file, byte for byte, through a few slots."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_device import device_engine, nbytes_of, pretend
from states import everything, pattern

import fastckpt
import fastckpt.io.transfer
import fastckpt.staging.fetching
from fastckpt import _core
from fastckpt.constants import CHUNK_SIZE, LEAF_SIZE
from fastckpt.errors import DamagedError
from fastckpt.fckpt.content import LeafDigests
from fastckpt.fckpt.slot_loads import slot_loads
from fastckpt.kernels.dispatch import Engine
from fastckpt.layout.blocks import align
from fastckpt.staging.ring import Ring

MIB = 2**20
SMALL_RING = Ring(slots=2, slot_size=2 * MIB)
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def state() -> dict[str, object]:
    """Everything there is, and storages that need several slots."""
    base = pattern(5 * MIB + 12345, 1)
    wide = pattern(300 * 1024, 2).view(torch.int32)
    return {"all": everything(), "large": base, "view": base[100:5000].view(70, 70), "wide": wide, "again": wide[3:]}


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
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


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
def test_digests_come_from_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    fastckpt.save(state(), tmp_path / "host", codec=codec, durable=False)
    pretend(monkeypatch, ring=SMALL_RING)
    device_engine(monkeypatch)
    fastckpt.save(state(), tmp_path / "device", codec=codec, durable=False)
    assert (tmp_path / "device").read_bytes() == (tmp_path / "host").read_bytes()


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
@pytest.mark.parametrize("when", [0, 1, 3, 7])
def test_the_device_takes_digests_from_when_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, when: int
) -> None:
    """Until its kernel is compiled the host hashes; the file is the same. The device is asked piece by piece."""
    state = {"large": pattern(13 * MIB + 5), "small": [pattern(i) for i in range(50)]}
    fastckpt.save(state, tmp_path / "host", codec=codec, durable=False)
    pretend(monkeypatch, ring=SMALL_RING)
    device_engine(monkeypatch)
    hashed, answers = [], iter([None] * when)
    hash_leaves = fastckpt.staging.fetching.hash_leaves
    monkeypatch.setattr(
        fastckpt.staging.fetching,
        "hash_leaves",
        lambda *columns: (hashed.append(len(columns[0])), hash_leaves(*columns)),
    )
    live = Engine("triton", "for this test")
    monkeypatch.setattr(fastckpt.staging.fetching, "engine_now", lambda *_, **__: next(answers, live))
    fastckpt.save(state, tmp_path / "device", codec=codec, durable=False)
    assert (tmp_path / "device").read_bytes() == (tmp_path / "host").read_bytes()
    pieces = [*[2 * 64] * 6, 65, 1]  # Slots of 2 MiB; the last one takes the small ones too.
    assert sum(hashed) == sum(pieces[when:])


def test_the_same_threads_write_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only what has no digests from the device is hashed on the way."""
    made: list[bytearray] = []

    def filler(*arguments: object, hashed: bytearray | None, **options: object) -> _core.SlotFiller:
        if hashed is not None:  # There is nothing else to write.
            made.append(hashed)
        return _core.SlotFiller(*arguments, hashed=hashed, **options)  # type: ignore[arg-type]

    pretend(monkeypatch, ring=Ring(slots=4, slot_size=MIB))
    monkeypatch.setattr(fastckpt.io.transfer, "_core", SimpleNamespace(SlotFiller=filler))
    fastckpt.save({"large": pattern(20 * MIB)}, tmp_path / "s", durable=False)
    assert made == [b"\1" * 20]
    device_engine(monkeypatch)
    fastckpt.save({"large": pattern(20 * MIB)}, tmp_path / "t", durable=False)
    assert made[1:] == [bytes(20)]
    monkeypatch.undo()
    assert (tmp_path / "s").read_bytes() == (tmp_path / "t").read_bytes()
    assert fastckpt.verify(tmp_path / "s").ok


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
def test_a_wrong_copy_does_not_match_its_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    pretend(monkeypatch, ring=SMALL_RING)
    device_engine(monkeypatch)
    wait = fastckpt.staging.fetching._SlotLoads.wait
    turns = itertools.count()

    def wait_wrong(self: fastckpt.staging.fetching._SlotLoads) -> LeafDigests:
        digests = wait(self)
        for piece in self.turns[next(turns)]:
            if piece.start == SMALL_RING.slot_size:
                ctypes.memset(piece.address + LEAF_SIZE + 7, 0, 1)
        return digests

    monkeypatch.setattr(fastckpt.staging.fetching._SlotLoads, "wait", wait_wrong)
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


@pytest.mark.thorough
def test_with_the_real_kernel_in_its_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    code = """
import sys, pytest, torch, fastckpt
from fake_device import pretend
from fastckpt.kernels.dispatch import engine_for
assert engine_for("cpu", "hash_kernel").name == "triton", engine_for("cpu", "hash_kernel").why
state = {"large": torch.arange(20_000), "small": [torch.full((i,), i) for i in range(20)]}
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

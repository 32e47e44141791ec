"""Planes decoded on the device: the same tensors and the same errors as on the CPU, whenever the kernel is ready.

Here the native core stands in for the kernels; `test_staging_device_check` runs those.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from delayed import DelayedDevice, FlippingDevice, delayed
from states import assert_same, compressible, copied, pattern

import fastckpt
from fastckpt import _core
from fastckpt.constants import CHUNK_SIZE, CODEC_PLANES, LEAF_SIZE
from fastckpt.errors import DamagedError, FastckptError
from fastckpt.io import source as source_module
from fastckpt.io.transfer import Fault, Moved
from fastckpt.kernels.dispatch import Engine
from fastckpt.loading.stream import load_through, opened, stream_through
from fastckpt.staging import as_stored, check, decoding, stage
from fastckpt.staging.as_stored import WORTH_DECODING, stretches_of
from fastckpt.staging.existing import ExistingTensors
from fastckpt.staging.regions import cut, joined
from fastckpt.staging.stage import FreshStorages, bring, staging_for

RINGS = [fastckpt.Ring(3, CHUNK_SIZE), fastckpt.Ring(2, 5 * LEAF_SIZE + CHUNK_SIZE), fastckpt.Ring(2, 2 * CHUNK_SIZE)]
NEVER = 10**6


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(1_400_000, generator=generator) / 50
    moments = torch.randn(600, 768, generator=generator)
    moments[100:400] = 0
    mixed = torch.cat([compressible(CHUNK_SIZE), pattern(CHUNK_SIZE), compressible(CHUNK_SIZE), pattern(900_000)])
    tensors = {"weights": weights.bfloat16(), "moments": moments, "noise": pattern(1_300_000), "mixed": mixed}
    tensors |= {f"small.{i}": weights[i * 1000 : i * 1100].clone() for i in range(30)}
    return tensors | {"last": weights[:300_000].half()}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planes") / "s.fckpt"
    fastckpt.save(state(), path, codec="planes", durable=False)
    return path


def whole_chunks(path: Path) -> int:
    """Chunks that a device can decode."""
    with fastckpt.open(path) as ck:
        records = ck._file.records
    return sum(
        row.codec == CODEC_PLANES and record.chunk_raw(number).size >= WORTH_DECODING
        for record in records
        for number, row in enumerate(record.chunks)
    )


class Kernels:
    """Kernels that are known to be live at a later question each, and what they did."""

    def __init__(self, patch: pytest.MonkeyPatch, checks: int = 0, decodes: int = 0) -> None:
        self.left = {"check_kernel": checks, "decode_planes": decodes}
        self.decoded = self.leaves = 0
        patch.setattr(stage, "engine_now", self.ask)
        patch.setattr(stage, "engine_for", lambda *_: Engine("triton", "for this test"))
        patch.setattr(check, "check_leaves", self.check)
        patch.setattr(decoding, "decode_planes", self.decode)

    def ask(self, target: torch.device, kernel: str, *, nbytes: int) -> Engine | None:
        self.left[kernel] -= 1
        return Engine("triton", "for this test") if self.left[kernel] < 0 else None

    def check(self, addresses: torch.Tensor, sizes: torch.Tensor, expected: torch.Tensor, bad: torch.Tensor) -> None:
        self.leaves += len(addresses)
        for row, (address, size) in enumerate(zip(addresses.tolist(), sizes.tolist(), strict=True)):
            digest = _core.leaf_digests(ctypes.string_at(address, size))
            bad[row] = int(int.from_bytes(digest, "little", signed=True) != expected[row])

    def decode(self, chunks: torch.Tensor, bad: torch.Tensor, room: torch.Tensor, *, largest: int) -> None:
        assert not bad.any()
        for number, (at, stored_size, to, size) in enumerate(chunks.tolist()):
            assert at % 8 == 0
            assert size <= largest
            raw = (ctypes.c_ubyte * size).from_address(to)
            self.decoded += 1
            try:
                _core.planes_decode(ctypes.string_at(at, stored_size), raw)
            except ValueError:
                bad[number] = 1


@pytest.mark.parametrize("ring", RINGS, ids=str)
@pytest.mark.parametrize(("checks", "decodes"), [(0, 0), (0, 1), (2, 0), (3, 5), (0, NEVER), (NEVER, 0)])
def test_whenever_it_is_ready(
    path: Path, monkeypatch: pytest.MonkeyPatch, ring: fastckpt.Ring, checks: int, decodes: int
) -> None:
    kernels = Kernels(monkeypatch, checks, decodes)
    with delayed(DelayedDevice(0.0005)) as device:
        assert_same(load_through(path, staging_for(device, ring=ring, threads=2), None), fastckpt.load(path))
    most = whole_chunks(path)
    if NEVER in (checks, decodes):
        assert kernels.decoded == 0
    elif checks == decodes == 0:
        # A slot that is not a multiple of a chunk still takes whole ones.
        assert kernels.decoded == most
    else:
        assert kernels.decoded < most
        # The fewer turns there are, the later it comes.
        assert kernels.decoded > 0 or ring != RINGS[0]


@pytest.mark.parametrize("verify", [False, "device", "host"])
def test_ways_to_verify(path: Path, monkeypatch: pytest.MonkeyPatch, verify: Any) -> None:
    kernels = Kernels(monkeypatch)
    expected = fastckpt.load(path)
    with delayed(DelayedDevice(0.0005)) as device:
        how = staging_for(device, ring=RINGS[0], verify=verify)
        assert_same(dict(stream_through(path, how, None)), expected)
    assert (kernels.decoded > 0) == (verify != "host")
    assert (kernels.leaves > 0) == (verify == "device")


def test_small_slots_and_parts_of_chunks_are_decoded_on_the_host(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels(monkeypatch)
    expected = fastckpt.load(path)
    with delayed(DelayedDevice(0)) as device:
        how = staging_for(device, ring=fastckpt.Ring(2, 4 * LEAF_SIZE))
        assert_same(load_through(path, how, None), expected)
    assert kernels.decoded <= 1, "what fits whole"
    with delayed(DelayedDevice(0)) as device, opened(path, None) as file:
        entries = [entry for entry in file.entries if entry.name in ("small.29", "last")]
        tensors = {entry.name: torch.zeros_like(expected[entry.name]) for entry in entries}
        bring(file.origin_of(entries), ExistingTensors(device, entries, tensors), staging_for(device, ring=RINGS[0]))
    assert_same(tensors, {name: expected[name] for name in tensors})


def test_into_tensors_that_exist(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Straight into their memory, or, where they lie otherwise, behind the decoding."""
    kernels = Kernels(monkeypatch)
    expected = fastckpt.load(path)
    tensors = {name: torch.zeros_like(tensor) for name, tensor in copied(expected).items()}
    tensors["moments"] = torch.zeros(768, 600).T
    tensors["mixed"] = torch.zeros(len(tensors["mixed"]) + 3, dtype=torch.uint8)[3:]
    with delayed(DelayedDevice(0.0005)) as device, opened(path, None) as file:
        bring(file.origin_of(file.entries), ExistingTensors(device, file.entries, tensors), staging_for(device))
        assert kernels.decoded
        # One place of 1.8 MB for the moments, one for the small ones; stored bytes and tables of one turn.
        assert sum(device.allocated) < 40_000_000
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name])


def test_memory_does_not_grow_with_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Kernels(monkeypatch)
    ring = RINGS[0]
    with delayed(DelayedDevice(0)) as device:
        load_through(path, staging_for(device, ring=ring, verify=False), None)
        regions = sum(tensor.untyped_storage().nbytes() for tensor in state().values())
        beside = sum(device.allocated) - regions
    assert beside < 2 * (ring.slot_size + 5 * 32 * 1024) + 100_000


def outcome(load: Callable[[], Any]) -> Any:
    try:
        return load()
    except FastckptError as error:
        return f"{type(error).__name__}: {error}"


def broken(path: Path, tmp_path: Path, change: Callable[[bytearray, int, int], None]) -> Path:
    """The file with a change to the stored bytes of the record of the weights."""
    raw = bytearray(path.read_bytes())
    with fastckpt.open(path) as ck:
        payload = next(r.payload for r in ck._file.records if any(e.name == "weights" for e in r.entries))
    change(raw, payload.offset, payload.size)
    (tmp_path / "bad.fckpt").write_bytes(raw)
    return tmp_path / "bad.fckpt"


def flip_head(raw: bytearray, start: int, size: int) -> None:
    raw[start + 4] ^= 1


def flip_value(raw: bytearray, start: int, size: int) -> None:
    raw[start + size // 2] ^= 1


def flip_many(raw: bytearray, start: int, size: int) -> None:
    for place in range(start, start + size, size // 17):
        raw[place] ^= 1


def tear(raw: bytearray, start: int, size: int) -> None:
    page = (start + size // 3) // 4096 * 4096
    raw[page : page + 100_000] = bytes(100_000)


@pytest.mark.parametrize("change", [flip_head, flip_value, flip_many, tear])
@pytest.mark.parametrize("verify", [True, False, "device"])
def test_damage_is_the_error_of_the_cpu(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, verify: Any
) -> None:
    bad = broken(path, tmp_path, change)
    expected = outcome(lambda: fastckpt.load(bad, verify=verify is not False))
    if verify:
        assert isinstance(expected, str)
        assert "DamagedError: " in expected
        assert "chunk" in expected
        assert "weights" in expected
    for checks, decodes in ((0, 0), (1, 2)):
        Kernels(monkeypatch, checks, decodes)
        with delayed(DelayedDevice(0)) as device:
            how = staging_for(device, ring=RINGS[2], verify=verify)
            found = outcome(lambda how=how: load_through(bad, how, None))  # type: ignore[misc]
        if isinstance(expected, str):
            assert found == expected
        else:
            assert_same(found, expected)


def test_bits_that_nobody_reads(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros that fill up what is stored: leaf digests prove what comes out; only the CPU looks at the stored digest."""
    with fastckpt.open(path) as ck:
        record = next(r for r in ck._file.records if any(e.name == "weights" for e in r.entries))
        stored = ck._file.source.read(*record.chunk_extent(0))
    size = record.chunk_raw(0).size
    for place in range(len(stored) - 1, 0, -1):
        changed = bytearray(stored)
        changed[place] ^= 0x80
        with contextlib.suppress(ValueError):
            raws = bytearray(size), bytearray(size)
            _core.planes_decode(changed, raws[0])
            _core.planes_decode(stored, raws[1])
            if raws[0] == raws[1]:
                break

    def fill_up(raw: bytearray, start: int, size: int) -> None:
        raw[start + place] ^= 0x80

    bad = broken(path, tmp_path, fill_up)
    Kernels(monkeypatch)
    with delayed(DelayedDevice(0)) as device:
        assert_same(load_through(bad, staging_for(device, ring=RINGS[0]), None), fastckpt.load(path))
    with pytest.raises(DamagedError, match="weights"):
        fastckpt.load(bad)
    assert not fastckpt.verify(bad).ok


def test_nothing_of_a_bad_chunk_is_handed_out(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Kernels(monkeypatch)
    bad = broken(path, tmp_path, flip_head)
    names: list[str] = []
    with delayed(DelayedDevice(0)) as device:
        tensors = stream_through(bad, staging_for(device, ring=RINGS[0]), None)
        with pytest.raises(DamagedError) as caught:
            names.extend(name for name, _ in tensors)
    assert "weights" not in names
    assert (caught.value.tensor, caught.value.chunk, caught.value.path) == ("weights", 0, str(bad))


def test_bits_that_flip_on_the_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the stored bytes of the first chunks: nothing is wrong with the file."""
    kernels = Kernels(monkeypatch)
    # What is known of all leaves takes two copies.
    with delayed(FlippingDevice(2)) as device, pytest.raises(DamagedError) as caught:
        load_through(path, staging_for(device, ring=RINGS[0], verify="device"), None)
    assert "damaged on its way to the device; in the file it is right: weights" in str(caught.value)
    assert kernels.decoded


@pytest.mark.parametrize("name", ["weights", "noise", "mixed"])
def test_bytes_that_cannot_be_read(path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The tensor and the chunk are named, be it stored as it is or not."""
    Kernels(monkeypatch)
    with fastckpt.open(path) as ck:
        record = next(r for r in ck._file.records if any(e.name == name for e in r.entries))
    where = record.chunk_extent(1).offset + 5

    def transfer(moves: Any, **options: Any) -> Moved:
        (move,) = moves
        moved = real([move], **options)
        inside = move.source <= where < move.source + move.size
        return moved._replace(faults=[Fault(0, where - move.source, 1, 5)]) if inside else moved

    real = source_module.transfer
    monkeypatch.setattr(source_module, "transfer", transfer)
    with delayed(DelayedDevice(0)) as device, pytest.raises(DamagedError) as caught:
        load_through(path, staging_for(device, ring=RINGS[1]), None)
    assert (caught.value.tensor, caught.value.chunk) == (name, 1)


@pytest.mark.parametrize("ring", RINGS, ids=str)
def test_stretches_cover_every_piece_and_stay_in_its_room(path: Path, ring: fastckpt.Ring) -> None:
    with delayed(DelayedDevice(0)) as device, opened(path, None) as file:
        regions = joined(file.origin_of(file.entries).regions(), ring.slot_size, FreshStorages(device).alone)
    kinds = set()
    for turn in cut(regions, ring.slot_size):
        for piece in turn:
            raw = room = 0
            for stretch in stretches_of(piece):
                assert stretch.offset >= raw
                assert stretch.place >= room
                raw, room = stretch.offset + stretch.size, stretch.place + stretch.stored_size
                assert room <= raw <= piece.size
                if stretch.kind == "planes":
                    parts = list(stretch.chunks())
                    assert sum(size for _, _, _, size in parts) == stretch.size
                    assert sum(stored for _, stored, _, _ in parts) == stretch.stored_size
                kinds.add(stretch.kind)
    assert kinds >= {"raw", "planes"}


def test_small_chunks_are_decoded_on_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a file of many small records does not make a device hold tables for each."""
    kernels = Kernels(monkeypatch)
    small = {"a": torch.zeros(WORTH_DECODING - 64, dtype=torch.uint8)}
    fastckpt.save(small, tmp_path / "f", codec="planes", durable=False)
    for least, decoded in ((WORTH_DECODING, 0), (1000, 1)):
        monkeypatch.setattr(as_stored, "WORTH_DECODING", least)
        with delayed(DelayedDevice(0)) as device:
            assert_same(load_through(tmp_path / "f", staging_for(device, ring=RINGS[0]), None), small)
        assert kernels.decoded == decoded

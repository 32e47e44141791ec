"""A checkpoint of several files is open like any other: every range of bytes is that of the tensor put together."""

from __future__ import annotations

import os
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from set_builds import write_shards
from sharded_builds import Box, Cut, grid, write_own, write_pieces

import fastckpt
from fastckpt import _core
from fastckpt.errors import DamagedError, UnsupportedStateError
from fastckpt.io.memory import allocate
from fastckpt.layout.entries import Entry
from fastckpt.sets.one_checkpoint import one_checkpoint
from fastckpt.sets.opened_set import OpenedSet
from fastckpt.sets.part_bytes import in_order, runs
from fastckpt.stored.open_file import open_file
from fastckpt.tensor.dtypes import NAMES
from fastckpt.tensor.rebuild import build_tensors

CUTS = {"rows": grid(3), "columns": grid(1, 4), "tiles": grid(3, 2, 2), "planes": grid(1, 1, 3)}


def some_parts(rng: random.Random) -> Cut:
    """No grid: a part of any place and size in the middle, and the rest in slabs around it."""

    def cut(name: str, shape: tuple[int, ...]) -> list[Box]:
        boxes: list[Box] = []
        low, size = [0] * len(shape), list(shape)
        for dim in range(len(shape)):
            if size[dim] < 2:
                continue
            at = rng.randrange(1, size[dim])
            side = low.copy(), size.copy()
            side[1][dim] = at
            boxes.append((tuple(side[0]), tuple(side[1])))
            low[dim] += at
            size[dim] -= at
        return [*boxes, (tuple(low), tuple(size))]

    return cut


def state() -> dict[str, Any]:
    torch.manual_seed(1)
    kinds = [torch.float32, torch.bfloat16, torch.int8, torch.complex128, torch.float64]
    shapes = [(7,), (12, 9), (6, 5, 8), (1, 30), (4, 1, 3, 5)]
    return {f"t{n}": torch.randn(shape).to(kind) for n, (shape, kind) in enumerate(zip(shapes, kinds, strict=True))}


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("cut", [*CUTS, "any", "own"])
def test_every_range_of_every_tensor(tmp_path: Path, cut: str, strided: bool) -> None:
    rng = random.Random(len(cut) + strided)
    saved = state()
    if cut == "own":
        place = write_own(tmp_path / "it", saved, grid(2, 3))
    else:
        place = write_pieces(tmp_path / "it", saved, CUTS.get(cut) or some_parts(rng), ranks=3, strided=strided)
    with OpenedSet(one_checkpoint(str(place))) as opened:
        assert [entry.name for entry in opened.entries] == list(saved)
        for entry in opened.entries:
            whole = bytes_of(saved[entry.name])
            opened.prove(entry.storage, threads=1)
            for _ in range(12):
                start, end = sorted(rng.randrange(len(whole) + 1) for _ in range(2))
                assert bytes(opened.read(entry.storage, start, end)) == whole[start:end], entry.name
            memory = allocate(len(whole))
            opened.fill({entry.storage: _core.address(memory)}, threads=1, progress=None)
            assert bytes(memory) == whole
        brought = opened.bring([1, 2, 1], threads=1, verify=True, progress=None, mapped=False)
        region, begin, size = brought(2)
        assert bytes(region[begin : begin + size]) == bytes_of(saved["t2"])


def test_runs_are_each_byte_once() -> None:
    rng = random.Random(5)
    for _ in range(300):
        shape = [rng.randrange(1, 6) for _ in range(rng.randrange(5))]
        sizes = [rng.randrange(1, extent + 1) for extent in shape]
        offsets = [rng.randrange(extent - size + 1) for extent, size in zip(shape, sizes, strict=True)]
        whole = torch.arange(torch.Size(shape).numel()).reshape(shape)
        part = whole[tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))].flatten().tolist()
        start, end = sorted(rng.randrange(whole.numel() + 1) for _ in range(2))
        found = list(runs(shape, offsets, sizes, 1, start, end))
        each = [
            (one.whole + number * one.step + n, one.part + number * one.size + n)
            for one in found
            for number in range(one.times)
            for n in range(one.size)
        ]
        assert each == [(place, number) for number, place in enumerate(part) if start <= place < end]
        assert sum(one.nbytes for one in found) == len(each)
    assert list(runs((2, 0), (0, 0), (2, 0), 4, 0, 0)) == []


def test_a_column_of_numbers_takes_no_longer_than_its_rows(tmp_path: Path) -> None:
    """Nothing is done for each number by itself."""
    tensor = torch.arange(2_000_000, dtype=torch.int16).view(-1, 2)
    place = write_pieces(tmp_path / "it", {"w": tensor}, grid(1, 2))
    (found,) = runs((2_000_000, 2), (0, 1), (2_000_000, 1), 2, 0, 8_000_000)
    assert (found.times, found.size, found.step) == (2_000_000, 2, 4)
    assert len(list(runs((2_000_000, 2), (0, 1), (2_000_000, 1), 2, 1_001, 7_000_003))) <= 3
    with OpenedSet(one_checkpoint(str(place))) as opened:
        assert bytes(opened.read(0, 0, tensor.nbytes)) == bytes_of(tensor)
        memory = allocate(tensor.nbytes)
        opened.fill({0: _core.address(memory)}, threads=1, progress=None)
        assert bytes(memory) == bytes_of(tensor)


STRIDED = {
    "columns first": torch.randn(6, 5).t(),
    "steps": torch.arange(40, dtype=torch.int16)[3::4],
    "one number": torch.tensor(1.5, dtype=torch.float64).expand(3, 4),
    "rows twice": torch.arange(5.0).expand(3, 5),
    "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "conjugated": torch.randn(3, 4, dtype=torch.complex64).conj(),
    "imaginary part": torch.randn(3, 4, dtype=torch.complex128).conj().imag,
    "wide": torch.randn(4, 3, dtype=torch.complex128).t().conj(),
    "half": torch.randn(4, dtype=torch.complex64).to(torch.complex32).conj(),
    "none": torch.empty(0, 3),
}


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("what", STRIDED)
def test_in_order_as_torch_has_it(tmp_path: Path, what: str) -> None:
    tensor = STRIDED[what]
    fastckpt.save({"x": tensor}, tmp_path / "x.fckpt", durable=False)
    with open_file(tmp_path / "x.fckpt") as file:
        (entry,) = file.entries
        raw = memoryview(bytearray(file.read(entry.storage, *entry.span)))
    expected = tensor.resolve_conj().resolve_neg().contiguous()
    made = in_order(raw, entry)
    assert bytes(made) == expected.view(torch.uint8).numpy().tobytes() if expected.numel() else not made


def test_whole_numbers_are_not_negated() -> None:
    with pytest.raises(UnsupportedStateError):
        in_order(memoryview(bytearray(8)), Entry("x", "int64", (1,), (1,), 0, 0, 8))


def test_only_so_many_files_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write_pieces(tmp_path / "it", {"w": torch.arange(240.0).view(24, 10)}, grid(12), ranks=12)
    monkeypatch.setattr("fastckpt.sets.open_members.MOST_OPEN", 3)
    before = len(os.listdir("/proc/self/fd"))
    with OpenedSet(one_checkpoint(str(place))) as opened:
        whole = bytes_of(torch.arange(240.0))
        ended: list[bytes] = []

        def read() -> None:
            ended.extend(bytes(opened.read(0, start, start + 90)) for start in range(0, 870, 13))

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ended) == sorted([whole[start : start + 90] for start in range(0, 870, 13)] * 3)
        assert len(os.listdir("/proc/self/fd")) <= before + 6
        shutil.copyfile(place / "__0_0.distcp", place / "copy")
        os.replace(place / "copy", place / "__0_0.distcp")
        with pytest.raises(DamagedError, match="changed while it was read"):
            opened.read(0, 0, 960)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    place = write_shards(tmp_path / "it")
    with OpenedSet(one_checkpoint(str(place))) as opened:
        opened.require_unchanged(next_step="again")
        with open(place / "model-00002-of-00003.safetensors", "ab") as file:
            file.write(b" ")
        with pytest.raises(DamagedError, match="changed"):
            opened.require_unchanged(next_step="again")


def test_a_tensor_of_torch_is_what_load_gives(tmp_path: Path) -> None:
    place = write_own(tmp_path / "it", state(), grid(2, 2))
    loaded = fastckpt.load(place)
    with OpenedSet(one_checkpoint(str(place))) as opened:
        brought = opened.bring(range(len(opened.entries)), threads=1, verify=True, progress=None, mapped=False)
        for entry, tensor in zip(
            opened.entries, build_tensors(opened.entries, brought, torch.device("cpu")), strict=True
        ):
            assert torch.equal(tensor, loaded[entry.name])
            assert NAMES[tensor.dtype] == entry.dtype

"""Directories to a device: the parts of a tensor go through slots to their places, as those of a file do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from delayed import DelayedDevice, delayed
from lazy_cuda import LazyCuda, install
from set_builds import flip, write_shards
from sharded_builds import grid, write_own, write_pieces
from states import assert_same, assert_same_elements, tensors_of

import fastckpt
from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import DamagedError
from fastckpt.layout.entries import Entry
from fastckpt.loading import filling
from fastckpt.loading.load_set import load_set
from fastckpt.loading.opening import Wanted
from fastckpt.loading.stream import load_through
from fastckpt.staging import ring as ring_module
from fastckpt.staging.device import CudaDevice, Device
from fastckpt.staging.existing import ExistingTensors
from fastckpt.staging.stage import bring, staging_for
from fastckpt.stored.opened import OpenedFile

RINGS = [fastckpt.Ring(1, LEAF_SIZE), fastckpt.Ring(3, 96 * 1024)]


def state() -> dict[str, Any]:
    torch.manual_seed(2)
    tensors = {"w": torch.randn(90, 70), "half": torch.randn(33, 8).bfloat16(), "small": torch.arange(5)}
    return {"model": tensors, "n": torch.tensor(4.0), "step": 3}


BUILDS: dict[str, Callable[[Path], Path]] = {
    "shards": write_shards,
    "shards .bin": lambda place: write_shards(place, stem="pytorch_model", suffix="bin"),
    "own, rows": lambda place: write_own(place, state(), grid(3)),
    "own, columns": lambda place: write_own(place, state(), grid(1, 3), codec="zstd"),
    "pieces, tiles": lambda place: write_pieces(place, state(), grid(2, 2), strided=True),
}


@pytest.fixture(params=BUILDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return BUILDS[request.param](tmp_path / "it")


def loaded(place: Path, device: Device, ring: fastckpt.Ring, keys: Any) -> Any:
    """`fastckpt.load` to a device; what is put together there lies in host memory, as all of this one."""
    read = functools.partial(load_through, how=staging_for(device, ring=ring))
    return load_set(
        str(place),
        keys,
        lambda source, keys: read(source, keys=keys),
        device=torch.device("cpu"),
        threads=1,
        opaque="error",
    )


@pytest.mark.parametrize("ring", RINGS, ids=str)
def test_load(place: Path, ring: fastckpt.Ring) -> None:
    expected = fastckpt.load(place)
    names = list(fastckpt.load(place, keys="*"))
    with delayed(DelayedDevice(0.0005)) as device:
        assert_same(loaded(place, device, ring, None), expected)
        for keys in ("*", names[1], names[::2]):
            assert_same(loaded(place, device, ring, keys), fastckpt.load(place, keys=keys))


@pytest.mark.parametrize("seed", range(2))
def test_load_to_a_device_that_is_always_late(place: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fastckpt.load(place)
    monkeypatch.setattr(ring_module, "_idle", {})
    cuda = install(monkeypatch, seed)
    assert isinstance(cuda, LazyCuda)
    assert_same(loaded(place, CudaDevice(torch.device("cuda")), RINGS[1], None), expected)


def through(device: Device, ring: fastckpt.Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let host memory be filled as that of a device is."""

    def fill(file: OpenedFile, entries: Sequence[Entry], tensors: Mapping[str, torch.Tensor], **options: Any) -> None:
        if entries:
            how = staging_for(device, ring=ring, progress=options["progress"])
            bring(Wanted(file, entries, whole=False).origin_of(entries), ExistingTensors(device, entries, tensors), how)

    monkeypatch.setattr(filling, "_fill_host_memory", fill)


def emptied(value: Any, make: Callable[[torch.Tensor], torch.Tensor] = torch.zeros_like) -> Any:
    if isinstance(value, dict):
        return {key: emptied(item, make) for key, item in value.items()}
    return make(value) if isinstance(value, torch.Tensor) else None


@pytest.mark.parametrize("ring", RINGS, ids=str)
def test_load_into(place: Path, ring: fastckpt.Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fastckpt.load(place)
    target = emptied(expected)
    seen: list[int] = []
    with delayed(DelayedDevice(0.0005)) as device:
        through(device, ring, monkeypatch)
        assert fastckpt.load_into(target, place, progress=seen.append) == ([], [])
        assert_same(target, expected)
        assert seen == sorted(seen)
        names = list(fastckpt.load(place, keys="*"))
        some = emptied(expected)
        fastckpt.load_into(some, place, keys=names[1])
        found = dict(zip(names, tensors_of(some), strict=True))
        assert [name for name, tensor in found.items() if tensor.any()] == [names[1]]


def test_load_into_tensors_that_lie_otherwise(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns first, or every other column of a larger one: each part is copied to its place."""
    expected = fastckpt.load(place)
    target = emptied(expected, lambda tensor: torch.zeros_like(tensor.mT).mT if tensor.dim() > 1 else tensor.clone())
    apart = emptied(expected, lambda tensor: torch.zeros(*tensor.shape, 2, dtype=tensor.dtype)[..., 1])
    with delayed(DelayedDevice(0.0005)) as device:
        through(device, RINGS[1], monkeypatch)
        for destination in (target, apart):
            fastckpt.load_into(destination, place)
            for got, want in zip(tensors_of(destination), tensors_of(expected), strict=True):
                assert_same_elements(got, want)


def test_damage_in_a_part_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write_pieces(tmp_path / "it", state(), grid(3))
    part = state()["model"]["w"][30:60].numpy().tobytes()
    (file,) = (path for path in place.iterdir() if part in path.read_bytes())
    flip(file, file.read_bytes().index(part) + 9)
    with delayed(DelayedDevice(0.0005)) as device:
        through(device, RINGS[1], monkeypatch)
        with pytest.raises(DamagedError, match="partly overwritten") as caught:
            fastckpt.load_into(emptied({"model": state()["model"], "n": state()["n"], "step": 0}), place)
    assert caught.value.path == str(file)

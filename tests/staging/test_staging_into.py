"""Into tensors that exist: straight to where they are, or through memory that is freed again."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from delayed import DelayedDevice, delayed
from states import DTYPES, assert_same_elements, copied, element_bytes, everything, of_dtype, pattern, tensors_of

import fastckpt
from fastckpt.constants import LEAF_SIZE
from fastckpt.loading.opening import opened
from fastckpt.staging.device import HostDevice
from fastckpt.staging.existing import ExistingTensors, apart
from fastckpt.staging.stage import bring, staging_for
from fastckpt.tensor.flatten import flatten

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
RINGS = [fastckpt.Ring(1, LEAF_SIZE), fastckpt.Ring(2, 256 * 1024), fastckpt.Ring()]


def fill(device: DelayedDevice, destination: object, path: Path, ring: fastckpt.Ring) -> None:
    flat = flatten(destination)
    tensors = {entry.name: tensor.detach() for entry, tensor in zip(flat.entries, flat.tensors, strict=True)}
    with opened(path, None) as wanted:
        target = ExistingTensors(device, wanted.entries, tensors)
        bring(wanted.origin_of(wanted.entries), target, staging_for(device, ring=ring))


@pytest.mark.parametrize("ring", RINGS, ids=str)
@pytest.mark.parametrize("name", ["raw.fckpt", "zstd.fckpt", "m.pt", "m.safetensors"])
def test_every_build_of_destination(tmp_path: Path, name: str, ring: fastckpt.Ring) -> None:
    large = of_dtype(torch.int32, 400 * 500).view(400, 500)
    state = {"plain": large, "turned": large + 1, "part": large + 2, "bits": pattern(300_001)}
    state |= {f"small.{i}": torch.full((i, 2), i, dtype=torch.int16) for i in range(100)}
    path = tmp_path / name
    if name == "m.pt":
        torch.save(state, path)
    elif name == "m.safetensors":
        safetensors.torch.save_file(state, path)
    else:
        fastckpt.save(state, path, codec=name.split(".")[0].replace("raw", "none"))
    destination = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    destination["turned"] = torch.zeros(500, 400, dtype=torch.int32).t()
    destination["part"] = torch.zeros(400, 1000, dtype=torch.int32)[:, ::2]
    places = {key: tensor.data_ptr() for key, tensor in destination.items()}
    with delayed(DelayedDevice(0.0001)) as device:
        fill(device, destination, path, ring)
        direct = sum(destination[key].nbytes for key in ("plain", "bits"))
        everything_else = sum(tensor.nbytes for tensor in state.values()) - direct
        assert sum(device.allocated) <= everything_else + 100 * 64 + 2 * 4096, (
            "contiguous tensors take no second memory"
        )
    for key, tensor in destination.items():
        assert tensor.data_ptr() == places[key]
        assert_same_elements(tensor, state[key])


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_aliases_and_views(tmp_path: Path, codec: str) -> None:
    state = everything()
    fastckpt.save(state, tmp_path / "s", codec=codec)
    destination = copied(state)
    for tensor in tensors_of(destination):
        storage = tensor.untyped_storage()
        if storage.nbytes():
            torch.empty(0, dtype=torch.uint8).set_(storage).fill_(1)
    with delayed(DelayedDevice(0.0001)) as device:
        fill(device, destination, tmp_path / "s", fastckpt.Ring(2, 64 * 1024))
    for got, want in zip(tensors_of(destination), tensors_of(state), strict=True):
        assert_same_elements(got, want)


@pytest.mark.parametrize(
    ("spans", "kept"),
    [
        ([(0, 4), (4, 4), (8, 1)], [0, 4, 8]),
        ([(0, 4), (3, 4), (8, 1)], [8]),
        ([(0, 10), (2, 1), (5, 1), (10, 1)], [10]),
        ([(0, 4), (0, 4)], []),
    ],
)
def test_apart(spans: list[tuple[int, int]], kept: list[int]) -> None:
    assert [start for start, _ in apart(spans, lambda span: span)] == kept


def test_bits_of_every_dtype_in_one_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, the kernel that copies many tensors at once knows the common dtypes only."""
    state = {str(dtype): of_dtype(dtype, 30, seed) for seed, dtype in enumerate(DTYPES)}
    fastckpt.save(state, tmp_path / "s")
    destination = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    strided = {name: torch.empty_strided(t.shape, (2,), dtype=t.dtype) for name, t in state.items()}
    real, launches = torch._foreach_copy_, []

    def foreach(to: list[torch.Tensor], parts: list[torch.Tensor]) -> None:
        assert {tensor.dtype for tensor in (*to, *parts)} == {torch.uint8}
        assert all(tensor.is_contiguous() for tensor in (*to, *parts))
        launches.append(len(to))
        real(to, parts)

    monkeypatch.setattr(torch, "_foreach_copy_", foreach)
    for tensors in (destination, strided):
        with opened(tmp_path / "s", None) as wanted:
            device = HostDevice()
            into = ExistingTensors(device, wanted.entries, tensors)
            bring(wanted.origin_of(wanted.entries), into, staging_for(device))
        for name, tensor in tensors.items():
            assert element_bytes(tensor) == element_bytes(state[name]), name
    assert launches == [len(DTYPES)]

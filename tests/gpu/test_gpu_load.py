"""Loads, streams and loads in place on a GPU: the bytes of a load on the CPU, verified where they arrive."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from states import DTYPES, assert_same, compressible, element_bytes, everything, of_dtype, pattern, tensors_of

import fastckpt
from fastckpt.errors import DamagedError, UsageError
from fastckpt.kernels.dispatch import engine_for
from fastckpt.loading.stream import load_through
from fastckpt.staging.device import Copy, CudaDevice, Work
from fastckpt.staging.stage import staging_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental"),
]
RINGS = [None, fastckpt.Ring(1, 16384), fastckpt.Ring(2, 1 << 20), fastckpt.Ring(5, 3 << 20)]
FORMATS = ["raw.fckpt", "planes.fckpt", "zstd.fckpt", "m.pt"]


@pytest.fixture(scope="module", autouse=True)
def device() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gpu_load")
    state = {f"large.{i}": of_dtype(torch.bfloat16, 5_000_000 + i, i) for i in range(6)}
    state |= {f"soft.{i}": compressible(4_000_000, i).view(torch.float32) for i in range(3)}
    state |= {f"small.{i}": torch.full((i % 90,), float(i)) for i in range(5000)}
    fastckpt.save(state, directory / "raw.fckpt", durable=False)
    fastckpt.save(state, directory / "planes.fckpt", codec="planes", durable=False)
    with contextlib.suppress(UsageError):  # No zstandard here: the tests of that file say so.
        fastckpt.save(state, directory / "zstd.fckpt", codec="zstd", durable=False)
    torch.save(state, directory / "m.pt")
    return directory


def file_of(files: Path, name: str) -> Path:
    if not (files / name).exists():
        pytest.skip("zstandard is not installed")
    return files / name


def poison(device: torch.device) -> None:
    """Fill free device memory, so that nothing is right by chance."""
    torch.full((512 << 20,), 0xA5, dtype=torch.uint8, device=device)


def on_cpu(state: Any) -> Any:
    return {name: tensor.cpu() for name, tensor in state.items()}


@pytest.mark.parametrize("verify", [True, "host", False])
@pytest.mark.parametrize("ring", RINGS, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_load(files: Path, device: torch.device, name: str, ring: fastckpt.Ring | None, verify: Any) -> None:
    path = file_of(files, name)
    expected = fastckpt.load(path)
    poison(device)
    state = fastckpt.load(path, device=device, ring=ring, verify=verify)
    assert all(tensor.device == device for tensor in state.values())
    assert_same(on_cpu(state), expected)


def test_everything(tmp_path: Path, device: torch.device) -> None:
    """Aliases, views, strides and flags are those of a load on the CPU, storage by storage."""
    state = everything()
    fastckpt.save(state, tmp_path / "s")
    poison(device)
    loaded = list(tensors_of(fastckpt.load(tmp_path / "s", device=device, ring=fastckpt.Ring(2, 64 * 1024))))
    expected = list(tensors_of(fastckpt.load(tmp_path / "s")))
    groups: dict[int, int] = {}
    for got, want in zip(loaded, expected, strict=True):
        assert (got.dtype, got.shape, got.stride(), got.storage_offset()) == (
            want.dtype,
            want.shape,
            want.stride(),
            want.storage_offset(),
        )
        assert (got.requires_grad, type(got), got.is_conj(), got.is_neg()) == (
            want.requires_grad,
            type(want),
            want.is_conj(),
            want.is_neg(),
        )
        assert element_bytes(got.detach().cpu()) == element_bytes(want)
        if want.untyped_storage().nbytes():
            mine, theirs = got.untyped_storage()._cdata, want.untyped_storage()._cdata
            assert groups.setdefault(theirs, mine) == mine


@pytest.mark.parametrize("name", FORMATS)
def test_stream_beside_work_of_the_caller(files: Path, device: torch.device, name: str) -> None:
    """The caller's own kernels, queued before and between, never meet memory that is being filled."""
    path = file_of(files, name)
    expected = fastckpt.load(path)
    busy = torch.zeros(64 << 20, dtype=torch.uint8, device=device)
    results = {}
    for key, tensor in fastckpt.stream(path, device=device, ring=fastckpt.Ring(3, 1 << 20)):
        busy.add_(1)
        scratch = torch.full((8 << 20,), 7, dtype=torch.uint8, device=device)
        results[key] = tensor.clone().cpu()
        del tensor, scratch
    assert sorted(results) == sorted(expected)
    assert_same({key: results[key] for key in expected}, expected)


def test_streams_of_the_caller(files: Path, device: torch.device) -> None:
    expected = fastckpt.load(files / "raw.fckpt")
    with torch.cuda.stream(torch.cuda.Stream(device)):
        state = fastckpt.load(files / "raw.fckpt", device=device)
        assert_same(on_cpu(state), expected)


def test_into_a_module(tmp_path: Path, device: torch.device) -> None:
    torch.manual_seed(0)
    source = torch.nn.Sequential(torch.nn.Linear(2000, 1500), torch.nn.Linear(1500, 7), torch.nn.BatchNorm1d(7))
    fastckpt.save(source.state_dict(), tmp_path / "s")
    torch.save(source.state_dict(), tmp_path / "s.pt")
    for name in ("s", "s.pt"):
        target = torch.nn.Sequential(torch.nn.Linear(2000, 1500), torch.nn.Linear(1500, 7), torch.nn.BatchNorm1d(7))
        target.to(device)
        places = [tensor.data_ptr() for tensor in target.state_dict().values()]
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        fastckpt.load_into(target, tmp_path / name)
        assert torch.cuda.max_memory_allocated(device) - before < 2_000_000, "no second copy of 12 MB"
        assert [tensor.data_ptr() for tensor in target.state_dict().values()] == places
        for got, want in zip(target.state_dict().values(), source.state_dict().values(), strict=True):
            assert torch.equal(got.cpu(), want)


def test_into_tensors_of_every_dtype(tmp_path: Path, device: torch.device) -> None:
    """Bit for bit, NaNs included, whatever the kernels that copy many tensors at once make of a dtype."""
    state = {str(dtype): of_dtype(dtype, 3000, seed) for seed, dtype in enumerate(DTYPES)}
    fastckpt.save(state, tmp_path / "s")
    destination = {name: torch.empty_like(tensor, device=device) for name, tensor in state.items()}
    poison(device)
    fastckpt.load_into(destination, tmp_path / "s")
    for name, tensor in destination.items():
        assert element_bytes(tensor.cpu()) == element_bytes(state[name]), name
    assert fastckpt.verify_tensors(destination, tmp_path / "s").ok


def test_into_strided_tensors(tmp_path: Path, device: torch.device) -> None:
    fastckpt.save({"a": torch.arange(600_000).view(600, 1000), "b": torch.arange(30.0)}, tmp_path / "s")
    destination = {
        "a": torch.zeros(1000, 600, dtype=torch.int64, device=device).t(),
        "b": torch.zeros(60, device=device)[::2],
    }
    fastckpt.load_into(destination, tmp_path / "s")
    assert torch.equal(destination["a"].cpu(), torch.arange(600_000).view(600, 1000))
    assert torch.equal(destination["b"].cpu(), torch.arange(30.0))


def test_into_tensors_on_several_devices(tmp_path: Path, device: torch.device) -> None:
    state = {"here": pattern(300_000), "there": pattern(300_000, 1), "small": torch.arange(5)}
    fastckpt.save(state, tmp_path / "s")
    torch.save(state, tmp_path / "s.pt")
    for name in ("s", "s.pt"):
        destination = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
        destination["there"] = destination["there"].to(device)
        fastckpt.load_into(destination, tmp_path / name)
        assert_same(on_cpu(destination), state)


def test_device_memory_is_bounded(files: Path, device: torch.device) -> None:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    state = fastckpt.load(files / "raw.fckpt", device=device, ring=fastckpt.Ring(4, 4 << 20))
    held = torch.cuda.memory_allocated(device) - before
    assert held < 1.05 * sum(tensor.nbytes for tensor in state.values()) + 512 * len(state)
    assert torch.cuda.max_memory_allocated(device) - before <= held + 2 * (8 << 20) + (1 << 20)


@pytest.mark.parametrize("ring", RINGS, ids=str)
def test_flipped_bit_is_found_on_the_device(tmp_path: Path, device: torch.device, ring: fastckpt.Ring | None) -> None:
    if engine_for(device, "check_kernel").name != "triton":
        pytest.skip(engine_for(device, "check_kernel").why)
    path = tmp_path / "s"
    fastckpt.save({"a": pattern(3_000_000), "b": pattern(3_000_000, 1)}, path)
    with fastckpt.open(path) as ck:
        payload = ck._file.records[1].payload
    raw = bytearray(path.read_bytes())
    raw[payload.offset + 2_000_000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedError) as expected:
        fastckpt.load(path)
    with pytest.raises(DamagedError) as caught:
        fastckpt.load(path, device=device, ring=ring, verify="device")
    assert str(caught.value) == str(expected.value)
    names: list[str] = []
    with pytest.raises(DamagedError):
        names.extend(name for name, _ in fastckpt.stream(path, device=device, ring=ring))
    assert names == ["a"]


def test_bit_that_flips_on_the_link(tmp_path: Path, device: torch.device) -> None:
    if engine_for(device, "check_kernel").name != "triton":
        pytest.skip(engine_for(device, "check_kernel").why)

    class Flipping(CudaDevice):
        flipped = False

        def send(self, copies: Sequence[Copy], works: Sequence[Work] = ()) -> Any:
            if works and not self.flipped:
                self.flipped = True
                super().send(copies)
                with torch.cuda.stream(self._copies):
                    copies[0][0][5] ^= 1
                copies = []
            return super().send(copies, works)

    fastckpt.save({"a": pattern(3_000_000)}, tmp_path / "s")
    how = staging_for(Flipping(device), ring=fastckpt.Ring(2, 1 << 20), verify="device")
    with pytest.raises(DamagedError, match="in the file it is right"):
        load_through(tmp_path / "s", how, None)

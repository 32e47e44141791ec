"""`CudaDevice` on a device that is always late: only what is ordered by streams and events happens in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from fake_device import pretend
from lazy_cuda import LazyCuda, install
from states import assert_same, compressible, pattern, tensors_of

import fastckpt
import fastckpt.saving.snapshots
import fastckpt.staging.fetching
from fastckpt.loading.stream import load_through, opened, stream_through
from fastckpt.staging import ring as ring_module
from fastckpt.staging.device import CudaDevice
from fastckpt.staging.existing import ExistingTensors
from fastckpt.staging.stage import Verify, bring, staging_for

SEEDS = range(3)
RINGS = [fastckpt.Ring(1, 64 * 1024), fastckpt.Ring(3, 96 * 1024)]
FORMATS = ["raw.fckpt", "zstd.fckpt", "m.pt"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("lazy")
    tied = pattern(300_000)
    state: dict[str, Any] = {f"large.{i}": compressible(150_000 + i, i) for i in range(4)}
    state |= {f"small.{i}": pattern(10 * i, i) for i in range(20)} | {"tied": tied, "view": tied[100:5000]}
    fastckpt.save(state, directory / "raw.fckpt", durable=False)
    fastckpt.save(state, directory / "zstd.fckpt", codec="zstd", durable=False)
    torch.save(state, directory / "m.pt")
    return directory


@pytest.fixture(params=SEEDS)
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LazyCuda:
    monkeypatch.setattr(ring_module, "_idle", {})
    return install(monkeypatch, request.param)


def expected_of(files: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = fastckpt.load(files / "raw.fckpt")
    return state


@pytest.mark.parametrize("verify", [True, "host"])
@pytest.mark.parametrize("name", FORMATS)
def test_loads(files: Path, cuda: LazyCuda, name: str, verify: Verify) -> None:
    expected = expected_of(files)
    for ring in RINGS:
        how = staging_for(CudaDevice(torch.device("cuda")), ring=ring, verify=verify)
        assert_same(load_through(files / name, how, None), expected)
        got: dict[str, torch.Tensor] = {}
        for key, tensor in stream_through(files / name, how, None):
            got[key] = tensor
            scratch = torch.zeros(100_000)
            cuda.caller.add(lambda scratch=scratch: scratch.add_(1))
        assert_same({key: got[key] for key in expected}, expected)


@pytest.mark.parametrize("name", FORMATS)
def test_loads_into_tensors_in_use(files: Path, cuda: LazyCuda, name: str) -> None:
    """What the caller has queued on them comes first."""
    expected = expected_of(files)
    tensors = {key: torch.zeros_like(tensor) for key, tensor in expected.items()}
    tensors["large.1"] = torch.zeros(2 * len(expected["large.1"]), dtype=torch.uint8)[::2]
    for ring in RINGS:
        for tensor in tensors.values():
            cuda.caller.add(lambda tensor=tensor: tensor.fill_(7))
        how = staging_for(CudaDevice(torch.device("cuda")), ring=ring)
        with opened(files / name, None) as file:
            bring(file.origin_of(file.entries), ExistingTensors(how.device, file.entries, tensors), how)
        for key, tensor in tensors.items():
            assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("way", ["save", "host", "device"])
def test_saves_of_what_is_still_being_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: LazyCuda, way: Literal["save", "host", "device"], slots: int
) -> None:
    """The file has what the caller queued before the call, and not what came after it."""
    expected = {f"large.{i}": pattern(3_000_000 + i, i) for i in range(3)}
    fastckpt.save(expected, tmp_path / "expected", durable=False)
    state = {key: torch.zeros_like(tensor) for key, tensor in expected.items()}
    for key, tensor in state.items():
        cuda.caller.add(lambda key=key, tensor=tensor: tensor.add_(expected[key]))
    pretend(monkeypatch)
    device = CudaDevice(torch.device("cuda"))
    device.target = torch.device("cpu")  # Where the tensors really are.
    for module in (fastckpt.staging.fetching, fastckpt.saving.snapshots):
        monkeypatch.setattr(module, "device_of", lambda target: device)
    ring = fastckpt.Ring(slots, 1 << 20)
    lend = fastckpt.staging.fetching.ring_slots
    monkeypatch.setattr(fastckpt.staging.fetching, "ring_slots", lambda target: lend(target, ring))
    if way == "save":
        fastckpt.save(state, tmp_path / "s", durable=False)
    else:
        pending = fastckpt.save_async(state, tmp_path / "s", snapshot=way, durable=False)
        for tensor in tensors_of(state):
            tensor.zero_()
        pending.result(60)
    assert (tmp_path / "s").read_bytes() == (tmp_path / "expected").read_bytes()
    assert fastckpt.verify(tmp_path / "s").ok

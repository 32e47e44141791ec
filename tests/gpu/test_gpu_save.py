"""Saves, snapshots and proofs of tensors that really are on a GPU: ``pytest -m gpu``. 4 GiB must be free there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from states import assert_same, everything, pattern

import fastckpt
from fastckpt.findings import Kind
from fastckpt.kernels.dispatch import engine_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental"),
]

MIB = 2**20
LEAF = 16384


def moved(state: Any, device: str) -> Any:
    """A state whose storages are copied to a device once each, with all views on them."""
    storages: dict[int, torch.Tensor] = {}

    def move(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            raw = torch.empty(0, dtype=torch.uint8, device=item.device).set_(storage)
            there = storages.setdefault(storage._cdata, raw.to(device, copy=True))
            made = torch.empty(0, dtype=item.dtype, device=device)
            return made.set_(there.untyped_storage(), item.storage_offset(), item.shape, item.stride())
        if isinstance(item, dict):
            return {key: move(value) for key, value in item.items()}
        return [move(value) for value in item] if isinstance(item, list) else item

    return move(state)


def state() -> dict[str, Any]:
    """Views, ties, packs, records of several slots, odd sizes."""
    base = pattern(70 * MIB + 12345)
    wide = pattern(8 * MIB).view(torch.float32).view(1024, 2048)
    return {
        "base": base,
        "view": base[5 * LEAF + 3 : 6 * LEAF + 9],
        "turned": wide.t(),
        "tied": [wide, wide],
        "matrix": torch.arange(1_000_000).view(1000, 1000),
        "small": [pattern(7 * i, i) for i in range(100)],
    }


@pytest.fixture
def host_file(tmp_path: Path) -> bytes:
    fastckpt.save(state(), tmp_path / "host", durable=False)
    return (tmp_path / "host").read_bytes()


def test_the_engine_is_live() -> None:
    assert engine_for("cuda", "hash_kernel").name == "triton", engine_for("cuda", "hash_kernel").why


@pytest.mark.parametrize("durable", [False, True])
def test_a_save_from_the_device_is_that_from_the_host(tmp_path: Path, host_file: bytes, durable: bool) -> None:
    fastckpt.save(moved(state(), "cuda"), tmp_path / "s", durable=durable)
    assert (tmp_path / "s").read_bytes() == host_file


def test_some_on_the_device_some_not(tmp_path: Path, host_file: bytes) -> None:
    there, here = moved(state(), "cuda"), state()
    for name in ("matrix", "turned"):
        there[name] = here[name]
    there["tied"] = [there["turned"].t()] * 2
    there["small"][::3] = here["small"][::3]
    fastckpt.save(there, tmp_path / "s", durable=False)
    assert (tmp_path / "s").read_bytes() == host_file
    for snapshot in ("host", "device"):
        fastckpt.save_async(there, tmp_path / "t", snapshot=snapshot, durable=False).result(60)
        assert (tmp_path / "t").read_bytes() == host_file


def test_zstd(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    fastckpt.save(state(), tmp_path / "host", codec="zstd", durable=False)
    fastckpt.save(moved(state(), "cuda"), tmp_path / "s", codec="zstd", durable=False)
    assert (tmp_path / "s").read_bytes() == (tmp_path / "host").read_bytes()


def test_every_dtype_and_layout(tmp_path: Path) -> None:
    names = ("views", "overlapping", "expanded", "scalar", "nan", "empty", "large", "larger", "dtypes")
    here = {name: everything()[name] for name in names}
    fastckpt.save(here, tmp_path / "host", durable=False)
    there = moved(here, "cuda")
    fastckpt.save(there, tmp_path / "s", durable=False)
    assert (tmp_path / "s").read_bytes() == (tmp_path / "host").read_bytes()
    assert fastckpt.verify_tensors(there, tmp_path / "s").findings == []


@pytest.mark.parametrize("snapshot", ["host", "device"])
def test_the_state_may_change_as_soon_as_it_returns(
    tmp_path: Path, host_file: bytes, snapshot: Literal["host", "device"]
) -> None:
    there = moved(state(), "cuda")
    for _ in range(3):
        pending = fastckpt.save_async(there, tmp_path / "s", snapshot=snapshot, durable=False)
        for tensor in (there["base"], there["matrix"], there["turned"], *there["small"]):
            tensor.zero_()
        torch.cuda.synchronize()
        pending.result(60)
        assert (tmp_path / "s").read_bytes() == host_file
        there = moved(state(), "cuda")


def test_what_is_queued_on_the_current_stream_is_saved(tmp_path: Path) -> None:
    tensor = torch.zeros(32 * MIB, dtype=torch.float32, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # A tenth of a second or so.
        tensor.fill_(3)
        fastckpt.save({"a": tensor}, tmp_path / "s", durable=False)
        torch.cuda._sleep(200_000_000)
        tensor.fill_(4)
        pending = fastckpt.save_async({"a": tensor}, tmp_path / "t", durable=False)
        tensor.fill_(5)
    pending.result(60)
    assert (fastckpt.load(tmp_path / "s")["a"] == 3).all()
    assert (fastckpt.load(tmp_path / "t")["a"] == 4).all()


def test_host_memory_is_bounded_by_the_ring(tmp_path: Path) -> None:
    code = """
import sys, threading, torch, fastckpt
def now():
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) // 1024
state = {str(i): torch.full((64 * 2**20,), float(i), device="cuda") for i in range(8)}
fastckpt.save({"a": torch.ones(5 * 2**20, device="cuda")}, sys.argv[1], durable=False)
before = peak = now()
def watch(done):
    global peak
    peak = max(peak, now())
fastckpt.save(state, sys.argv[1], durable=False, progress=watch)
print(max(peak, now()) - before)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 300  # MiB, of the 2048 saved


def test_verify_tensors_on_the_device(tmp_path: Path) -> None:
    fastckpt.save(state(), tmp_path / "s", durable=False)
    for there in (moved(state(), "cuda"), fastckpt.load(tmp_path / "s", device="cuda")):
        assert fastckpt.verify_tensors(there, tmp_path / "s").findings == []
        for byte in (0, LEAF, 65 * MIB + 3 * LEAF - 1):
            there["base"][byte] ^= 16
            (finding,) = fastckpt.verify_tensors(there, tmp_path / "s").findings
            assert (finding.kind, finding.leaf, finding.leaves) == (Kind.ROTTED, byte // LEAF, 1)
            assert finding.tensors[0] == "base"
            there["base"][byte] ^= 16
        there["matrix"][500, 3] += 1
        (finding,) = fastckpt.verify_tensors(there, tmp_path / "s", keys="matrix").findings
        assert finding.tensors == ("matrix",)
        there["matrix"][500, 3] -= 1
    there["turned"] = there["turned"].contiguous()
    there["small"][50] = there["small"][50].cpu()
    assert fastckpt.verify_tensors(there, tmp_path / "s").findings == []


def test_a_module_and_its_optimizer(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(512, 2048), torch.nn.Linear(2048, 512)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(8, 512, device="cuda")).sum().backward()
    optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    fastckpt.save_async(saved, tmp_path / "s").result(60)
    fastckpt.save(saved, tmp_path / "t")
    assert (tmp_path / "s").read_bytes() == (tmp_path / "t").read_bytes()
    assert fastckpt.verify_tensors(saved, tmp_path / "s").findings == []
    fastckpt.save(fastckpt.load(tmp_path / "s"), tmp_path / "u")
    assert (tmp_path / "u").read_bytes() == (tmp_path / "s").read_bytes()


def test_broadcast_by_nccl(tmp_path: Path) -> None:
    import torch.distributed as dist

    if not dist.is_nccl_available():
        pytest.skip("this torch has no NCCL")
    fastckpt.save(state(), tmp_path / "s", durable=False)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        loaded = fastckpt.load(tmp_path / "s", device="cuda", share="broadcast")
    finally:
        dist.destroy_process_group()
    assert fastckpt.verify_tensors(loaded, tmp_path / "s").findings == []
    fastckpt.save(loaded, tmp_path / "t", durable=False)
    assert_same(fastckpt.load(tmp_path / "t"), state())

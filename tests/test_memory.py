"""How much memory the operations take, each measured in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from measured import measured
from states import compressible

import fastckpt

MIB = 2**20
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc is not there")


CODECS = [pytest.param("none", marks=pytest.mark.thorough), "zstd"]


def large_state(megabytes: int) -> dict[str, torch.Tensor]:
    """Tensors of 20 MiB, and a few small ones."""
    block = compressible(20 * MIB)
    state = {f"layer.{i}": block.roll(i).view(torch.float32) for i in range(megabytes // 20)}
    return state | {f"small.{i}": torch.full((1000,), i) for i in range(50)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 MiB under the name of each codec, and 600 MiB in a .pt and a .fckpt."""
    directory = tmp_path_factory.mktemp("memory")
    state = large_state(600)
    torch.save(state, directory / "m.pt")
    fastckpt.save(state, directory / "m.fckpt", durable=False)
    half = {name: tensor for name, tensor in state.items() if name not in {f"layer.{i}" for i in range(15)}}
    for codec in ("none", "zstd"):
        fastckpt.save(half, directory / codec, codec=codec, durable=False)
    return directory


@pytest.mark.parametrize("codec", CODECS)
def test_load_into(files: Path, tmp_path: Path, codec: str) -> None:
    code = """
import torch
with fastckpt.open(sys.argv[1]) as ck:
    state = {name: torch.ones(ck.info(name).shape, dtype=getattr(torch, ck.info(name).dtype)) for name in ck}
fastckpt.load_into({"x": torch.ones(1)}, sys.argv[2])
with Peak() as peak:
    fastckpt.load_into(state, sys.argv[1])
print(json.dumps({"growth": peak.growth, "last": state["small.49"][0].item()}))
"""
    fastckpt.save({"x": torch.zeros(1)}, tmp_path / "tiny")
    result = measured(code, files / codec, tmp_path / "tiny")
    assert result["last"] == 49
    assert result["growth"] < 100 * MIB


@pytest.mark.parametrize("codec", CODECS)
def test_save_copies_nothing_large(tmp_path: Path, codec: str) -> None:
    code = """
import torch
state = {str(i): torch.full((5_000_000,), float(i)) for i in range(15)}
fastckpt.save({"x": torch.ones(1)}, sys.argv[1], codec=sys.argv[2])
with Peak() as peak:
    fastckpt.save(state, sys.argv[1], codec=sys.argv[2], durable=False)
print(json.dumps({"growth": peak.growth}))
"""
    assert measured(code, tmp_path / "s", codec)["growth"] < 100 * MIB


def test_mapped_load_takes_no_memory(files: Path) -> None:
    code = """
import torch
with Peak() as peak:
    state = fastckpt.load(sys.argv[1], mmap=True)
print(json.dumps({"growth": peak.growth, "last": state["small.49"][0].item()}))
"""
    assert measured(code, files / "none")["growth"] < 50 * MIB


@pytest.mark.parametrize("codec", CODECS)
def test_load_takes_the_tensors_and_little_else(files: Path, codec: str) -> None:
    code = """
import torch
with Peak() as peak:
    state = fastckpt.load(sys.argv[1])
print(json.dumps({"growth": peak.growth}))
"""
    assert 300 * MIB <= measured(code, files / codec)["growth"] < 400 * MIB


@pytest.mark.parametrize("codec", CODECS)
def test_convert_streams_without_torch(files: Path, tmp_path: Path, codec: str) -> None:
    code = """
with Peak() as there:
    fastckpt.convert(sys.argv[1], sys.argv[2], codec=sys.argv[3], durable=False)
with Peak() as back:
    fastckpt.convert(sys.argv[2], sys.argv[4], durable=False)
with Peak() as check:
    assert fastckpt.verify(sys.argv[2]).ok
print(json.dumps({
    "there": there.peak, "back": back.peak, "check": check.peak, "all": now("VmHWM"), "torch": "torch" in sys.modules,
}))
"""
    result = measured(code, files / "m.pt", tmp_path / "m.fckpt", codec, tmp_path / "back.pt")
    assert not result["torch"]
    assert result["there"] < 300 * MIB
    assert result["back"] < 300 * MIB
    assert result["check"] < 300 * MIB
    assert (files / "m.pt").stat().st_size == (tmp_path / "back.pt").stat().st_size


def test_verify_and_open_do_not_need_the_state(files: Path) -> None:
    code = """
with Peak() as peak:
    report = fastckpt.verify(sys.argv[1])
print(json.dumps({"growth": peak.growth, "ok": report.ok, "torch": "torch" in sys.modules}))
"""
    result = measured(code, files / "zstd")
    assert result == {"growth": result["growth"], "ok": True, "torch": False}
    assert result["growth"] < 100 * MIB


@pytest.mark.parametrize("name", ["m.pt", "m.fckpt"])
def test_verify_gives_back_what_it_mapped(files: Path, name: str) -> None:
    """A cached file is summed where it is mapped, and still never lies in memory as a whole."""
    code = """
report = fastckpt.verify(sys.argv[1])
print(json.dumps({"peak": now("VmHWM"), "ok": report.ok}))
"""
    result = measured(code, files / name)
    assert result["ok"]
    assert result["peak"] < 300 * MIB

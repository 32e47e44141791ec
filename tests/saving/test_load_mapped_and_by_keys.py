"""Parts of a file, and files that are mapped: what is read, and whose the memory is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from states import (
    assert_same,
    compressible,
    of_dtype,
    pattern,
)

import fastckpt
from fastckpt.errors import (
    DamagedError,
    TensorNotFoundError,
)

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


# mmap


def mmap_state() -> dict[str, Any]:
    return {
        "pack": [torch.arange(10.0), torch.ones(3, dtype=torch.int64)],
        "large": of_dtype(torch.int32, 100_000),
        "weight": torch.nn.Parameter(torch.linspace(0, 1, 70_000)),
        "rows": of_dtype(torch.int16, 800_000)[::2],
    }


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
def test_mapped_tensors_are_private(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "s"
    state = mmap_state()
    fastckpt.save(state, path, codec=codec)
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    first, second = fastckpt.load(path, mmap=True), fastckpt.load(path, mmap=True)
    optimizer = torch.optim.AdamW([first["weight"]], lr=0.1)
    first["weight"].sum().backward()
    optimizer.step()
    for tensor in (first["pack"][0], first["pack"][1], first["large"], first["rows"]):
        tensor.add_(1)
    assert not torch.equal(first["weight"], state["weight"])
    assert torch.equal(first["large"], state["large"] + 1)
    assert_same(second, state)
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == stamp
    assert_same(fastckpt.load(path), state)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_forked_process_has_its_own_tensors(tmp_path: Path, mapped: bool) -> None:
    fastckpt.save({"large": torch.zeros(3_000_000), "small": torch.zeros(3)}, tmp_path / "s")
    code = (
        "import os, sys, fastckpt\n"
        "state = fastckpt.load(sys.argv[1], mmap=sys.argv[2] == 'True')\n"
        "if (child := os.fork()) == 0:\n"
        "    state['large'][0] = state['small'][0] = 1\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print(state['large'][0].item(), state['small'][0].item())\n"
    )
    assert forked.run("-c", code, str(tmp_path / "s"), str(mapped)).stdout == "0.0 0.0\n"


def test_mapped_file_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    state = mmap_state()
    fastckpt.save(state, path)
    loaded = fastckpt.load(path, mmap=True)
    fastckpt.save(loaded, path)
    loaded["large"].zero_()
    fastckpt.save({"large": torch.zeros(500_000)}, path)
    loaded["large"].copy_(state["large"])
    assert_same(loaded, state)
    path.unlink()
    assert_same(loaded, state)


def test_mapping_copies_nothing(tmp_path: Path) -> None:
    fastckpt.save({"a": torch.zeros(4 * 2**20)}, tmp_path / "s")
    address = fastckpt.load(tmp_path / "s", mmap=True)["a"].data_ptr()
    maps = Path("/proc/self/maps").read_text().splitlines()
    inside = [line for line in maps if int(line.split("-")[0], 16) <= address < int(line.split()[0].split("-")[1], 16)]
    if len(inside) == 1 and "/" in inside[0]:
        assert inside[0].endswith(str(tmp_path / "s"))


# Keys


def test_keys(tmp_path: Path) -> None:
    path = tmp_path / "s"
    shared = torch.arange(10.0)
    state = {
        "model": {"w": shared, "tied": shared, "b": torch.ones(2)},
        "optim": [{"m": torch.zeros(2)}, 5],
        "a[1]": torch.ones(1),
        "a.b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
    }
    fastckpt.save(state, path)
    assert list(fastckpt.load(path, keys="*")) == [
        *("model.w", "model.tied", "model.b", "optim.0.m", "a[1]", "a.b", "a.b#2"),
    ]
    loaded = fastckpt.load(path, keys=["optim.*", "model.[wt]*"])
    assert_same(loaded, {"model.w": shared, "model.tied": shared, "optim.0.m": torch.zeros(2)})
    assert list(fastckpt.load(path, keys="a[1]")) == ["a[1]"], "a name is a name first, then a glob"
    assert_same(fastckpt.load(path, keys=iter(["a.b#2"])), {"a.b#2": torch.zeros(1)})
    assert fastckpt.load(path, keys=[]) == {}
    for mapped in (False, True):
        with pytest.raises(TensorNotFoundError, match=r"model\.ww") as caught:
            fastckpt.load(path, keys=["model.w", "model.ww"], mmap=mapped)
    assert isinstance(caught.value, KeyError)
    assert "model.w" in str(caught.value), "the closest names are shown"
    with pytest.raises(TensorNotFoundError):
        fastckpt.load(path, keys="none.*")


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
@pytest.mark.parametrize("mapped", [False, True])
def test_keys_read_only_what_they_touch(tmp_path: Path, codec: str, mapped: bool) -> None:
    path = tmp_path / "s"
    state = {
        "a": compressible(3_000_000, 1),
        "b": compressible(3_000_000, 2),
        "small": [of_dtype(torch.uint8, 40_000, i) for i in range(6)],
    }
    fastckpt.save(state, path, codec=codec)
    wanted = {"a": state["a"], "small.0": state["small"][0], "small.5": state["small"][5]}
    with fastckpt.open(path) as ck:
        records = ck._file.records
    raw = bytearray(path.read_bytes())
    payload = records[1].payload
    raw[payload.offset : payload.end] = bytes(payload.size)
    if codec == "none":
        raw[records[2].payload.offset + 100_000] ^= 1  # in small.2
    path.write_bytes(raw)
    assert_same(fastckpt.load(path, keys=list(wanted), mmap=mapped), wanted)
    with pytest.raises(DamagedError, match="b") as caught:
        fastckpt.load(path, keys="b", mmap=mapped)
    assert caught.value.tensor == "b"
    with pytest.raises(DamagedError):
        fastckpt.load(path, mmap=mapped)


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="/proc/self/io is not there")
def test_keys_read_few_bytes(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fastckpt.save({"a": pattern(20_000_000), "b": pattern(300_000), "c": pattern(20_000_000)}, path)

    def rchar() -> int:
        return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])

    before = rchar()
    fastckpt.load(path, keys="b")
    assert rchar() - before < 600_000

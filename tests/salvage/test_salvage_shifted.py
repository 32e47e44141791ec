"""A .fckpt of which all stands further back or further in front: digests prove it as well as offsets do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastckpt

COUNT = 6


def state() -> dict[str, torch.Tensor]:
    return {f"t{n}": torch.full((300, 300), float(n)) for n in range(COUNT)} | {"small": torch.arange(9)}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
@pytest.mark.parametrize("count", [1, 7, 4096, 40_961, 9_000_000])
@pytest.mark.parametrize("tail", [0, 4096])
def test_bytes_put_in_front(tmp_path: Path, codec: str, count: int, tail: int) -> None:
    path = tmp_path / "a.fckpt"
    fastckpt.save(state(), path, codec=codec)
    raw = path.read_bytes()
    path.write_bytes(b"\x5a" * count + raw[: len(raw) - tail])
    check(path, tmp_path, set())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
@pytest.mark.parametrize("count", [1, 100, 4096, 5000, 8192])
@pytest.mark.parametrize("tail", [0, 4096])
def test_the_first_bytes_taken_away(tmp_path: Path, codec: str, count: int, tail: int) -> None:
    path = tmp_path / "a.fckpt"
    fastckpt.save(state(), path, codec=codec)
    raw = path.read_bytes()
    path.write_bytes(raw[count : len(raw) - tail])
    check(path, tmp_path, set())


@pytest.mark.parametrize("index", [True, False], ids=["", "without index"])
@pytest.mark.parametrize("start", [4096, 8192, -4096, -8192])
def test_whole_blocks_and_the_end_is_gone(tmp_path: Path, start: int, index: bool) -> None:
    """Headers in the index state the old places: what stands in the file counts for more."""
    path = tmp_path / "a.fckpt"
    fastckpt.save(state(), path)
    raw = path.read_bytes()
    end = len(raw) - 4096 if index else raw.index(b"FCKPTIDX")
    path.write_bytes(bytes(max(start, 0)) + raw[max(-start, 0) : end])
    check(path, tmp_path, set())


def test_a_checkpoint_inside_of_a_tensor_is_not_the_file(tmp_path: Path) -> None:
    """Of a file that has lost all its headers, while its manifest stands in its place, nothing comes back."""
    path = tmp_path / "a.fckpt"
    fastckpt.save({"inner": torch.ones(300, 300)}, path)
    fastckpt.save({"file": torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)}, path)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"FCKPTREC")
    raw[at : at + 4096] = bytes(4096)
    path.write_bytes(raw[: raw.rindex(b"FCKPTIDX")])
    report = fastckpt.salvage(path)
    assert {name: fate.status.value for name, fate in report.tensors.items()} == {"file": "lost"}


@pytest.mark.parametrize("inner", [True, False])
def test_only_the_index_is_left(tmp_path: Path, inner: bool) -> None:
    """The copy of a header in the index is no header that has moved, and no more is a checkpoint in a tensor."""
    path = tmp_path / "a.fckpt"
    fastckpt.save({"x": torch.arange(90_000)}, path)
    if inner:
        fastckpt.save({"x": torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)}, path)
    raw = bytearray(path.read_bytes())
    index = raw.rindex(b"FCKPTIDX")
    header = raw.index(b"FCKPTREC")
    raw[: header + 4096] = bytes(header + 4096)
    path.write_bytes(raw[: index + 8192])
    report = fastckpt.salvage(path)
    assert {name: fate.status.value for name, fate in report.tensors.items()} == {"x": "intact"}
    assert report.tensors["x"].offset == header + 4096


def test_bytes_taken_out_behind_the_manifest(tmp_path: Path) -> None:
    """The end seems to have moved, and what stands in front of it has not."""
    path = tmp_path / "a.fckpt"
    fastckpt.save(state(), path)
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"FCKPTIDX") + 100
    path.write_bytes(bytes(4096) + raw[4096:at] + raw[at + 3 :])
    check(path, tmp_path, set())


def test_damage_is_still_found(tmp_path: Path) -> None:
    path = tmp_path / "a.fckpt"
    fastckpt.save(state(), path)
    raw = bytearray(path.read_bytes())
    at = raw.index(torch.full((300, 300), 3.0).numpy().tobytes()[:1000])
    raw[at + 500] ^= 1
    path.write_bytes(b"x" * 13 + raw)
    check(path, tmp_path, {"t3"})


def check(path: Path, directory: Path, damaged: set[str]) -> None:
    report = fastckpt.salvage(path, directory / "out.fckpt")
    wrong = {name for name, fate in report.tensors.items() if fate.status.value != "intact"}
    assert wrong == damaged
    assert len(report.tensors) == COUNT + 1
    assert report.exit_code == (3 if damaged else 1)
    loaded = fastckpt.load(directory / "out.fckpt")
    for name, tensor in state().items():
        assert name in damaged or torch.equal(loaded[name], tensor)
    verified = fastckpt.verify(path)
    assert (set(verified.damaged_tensors), verified.ok) == (damaged, False)
    with pytest.raises(fastckpt.errors.FastckptError):
        fastckpt.load(path)

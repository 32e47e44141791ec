"""A .fckpt of which all stands further back or further in front: digests prove it as well as offsets do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastckpt

COUNT = 6


def state() -> dict[str, torch.Tensor]:
    return {f"t{n}": torch.full((300, 300), float(n)) for n in range(COUNT)} | {"small": torch.arange(9)}


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("count", [1, 7, 4096, 40_961, 9_000_000])
@pytest.mark.parametrize("tail", [0, 4096])
def test_bytes_put_in_front(tmp_path: Path, codec: str, count: int, tail: int) -> None:
    path = tmp_path / "a.fckpt"
    fastckpt.save(state(), path, codec=codec)
    if tail and count % 4096 == 0:
        pytest.skip("without a footer, a shift by whole blocks cannot be told from a checkpoint inside of a tensor")
    raw = path.read_bytes()
    path.write_bytes(b"\x5a" * count + raw[: len(raw) - tail])
    check(path, tmp_path, set())


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("count", [1, 100, 4096, 5000, 8192])
@pytest.mark.parametrize("tail", [0, 4096])
def test_the_first_bytes_taken_away(tmp_path: Path, codec: str, count: int, tail: int) -> None:
    path = tmp_path / "a.fckpt"
    fastckpt.save(state(), path, codec=codec)
    if tail and count % 4096 == 0:
        pytest.skip("without a footer, a shift by whole blocks cannot be told from a checkpoint inside of a tensor")
    raw = path.read_bytes()
    path.write_bytes(raw[count : len(raw) - tail])
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

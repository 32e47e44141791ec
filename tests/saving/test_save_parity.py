"""Parity of all that saves: in the background, a run's directory, the shards of several ranks."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import fastckpt
import fastckpt.dcp
from fastckpt.constants import SUMS_SUFFIX
from fastckpt.errors import UsageError
from fastckpt.sealing.check import check
from fastckpt.seals.names import sums_path
from fastckpt.seals.sums import read_sums


def state() -> dict[str, Any]:
    torch.manual_seed(1)
    return {"w": torch.randn(500_000), "b": torch.randn(30), "step": 7}


def spoil(path: Path) -> bytes:
    good = path.read_bytes()
    path.write_bytes(good[:70_000] + bytes(20_000) + good[90_000:])
    return good


@pytest.mark.parametrize("codec", ["none", "planes"])
@pytest.mark.parametrize("snapshot", ["host", "device"])
def test_in_the_background(tmp_path: Path, codec: str, snapshot: Any) -> None:
    """File and sums are those of `fastckpt.save`, whatever happens to the state meanwhile."""
    for name in "ab":
        (tmp_path / name).mkdir()
    fastckpt.save(state(), tmp_path / "a/s.fckpt", parity="10%", codec=codec, durable=False)
    changing = state()
    pending = fastckpt.save_async(
        changing, tmp_path / "b/s.fckpt", parity="10%", codec=codec, durable=False, snapshot=snapshot
    )
    changing["w"].zero_()
    pending.result()
    for name in ("s.fckpt", f"s.fckpt{SUMS_SUFFIX}"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    good = spoil(tmp_path / "b/s.fckpt")
    assert fastckpt.repair(tmp_path / "b/s.fckpt", durable=False).state == "healed"
    assert (tmp_path / "b/s.fckpt").read_bytes() == good


def test_what_there_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="parity"):
        fastckpt.save_async(state(), tmp_path / "s.fckpt", parity="4%")
    with pytest.raises(UsageError, match="no place beside it"):
        fastckpt.save_async(state(), io.BytesIO(), parity="3%")
    with pytest.raises(UsageError, match="parity"):
        fastckpt.CheckpointDirectory(tmp_path, parity="4%")
    with pytest.raises(UsageError, match="parity"):
        fastckpt.dcp.FastckptWriter(tmp_path, parity="4%")
    assert os.listdir(tmp_path) == []
    fastckpt.save_async(state(), tmp_path / "s.fckpt").result()
    assert os.listdir(tmp_path) == ["s.fckpt"]


def test_a_directory_of_steps(tmp_path: Path) -> None:
    run = fastckpt.CheckpointDirectory(tmp_path / "run", keep_last=1, parity="3%", durable=False)
    for step in (1, 2):
        run.save(state(), step)
    pending = run.save_async(state(), 3)
    assert pending is not None
    pending.result()
    run.prune()
    assert sorted(os.listdir(run.path)) == ["step_00000003.fckpt", f"step_00000003.fckpt{SUMS_SUFFIX}"]
    assert run.latest() == f"{run.path}/step_00000003.fckpt"
    assert check(f"{run.path}/step_00000003.fckpt").state == "OK"


def test_shards(tmp_path: Path) -> None:
    """Each file of a set is sealed; the sums of a generation go with it."""
    place = tmp_path / "set"
    for number in (1, 2):
        fastckpt.dcp.save({"w": torch.full((90_000,), number)}, place, parity="3%", no_dist=True, durable=False)
        names = ["set.fckpt", f"shard-{number:04d}-00000.fckpt"]
        assert sorted(os.listdir(place)) == sorted([*names, *(name + SUMS_SUFFIX for name in names)])
    for name in names:
        assert read_sums(sums_path(place / name), threads=1).parity is not None
        assert check(place / name).state == "OK"
    spoil(place / names[1])
    assert fastckpt.repair(place / names[1], durable=False).state == "healed"
    back = {"w": torch.zeros(90_000, dtype=torch.int64)}
    fastckpt.dcp.load(back, place, no_dist=True)
    assert bool((back["w"] == 2).all())


def test_a_sharded_directory_of_steps(tmp_path: Path) -> None:
    run = fastckpt.CheckpointDirectory(tmp_path / "run", sharded=True, parity="3%", durable=False)
    path = run.save({"w": torch.ones(9)}, 5)
    assert check(f"{path}/set.fckpt").state == "OK"
    assert run.latest() == path

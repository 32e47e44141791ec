"""Parity first: salvage of a sealed file takes what its parity heals for what was sealed, and nothing else."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint

import fastckpt
import fastckpt.dcp
from fastckpt.cli.main import main
from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import FastckptError, OutOfSpaceError
from fastckpt.io.source import Source
from fastckpt.salvaging import healed_view
from fastckpt.seals import healed_copy, remains, standing
from fastckpt.seals.healed_copy import HealedCopy
from fastckpt.seals.names import sums_path
from fastckpt.seals.standing import Standing
from fastckpt.surveying import sealed as surveyed

LEAF = LEAF_SIZE
FORMS = ("fckpt", "pt", "legacy.pt", "safetensors")


def state() -> dict[str, torch.Tensor]:
    """1.4 MB: two groups of leaves."""
    generator = torch.Generator().manual_seed(1)
    return {f"layer{n}": torch.randn(350, 100, generator=generator) for n in range(10)}


def sealed(directory: Path, form: str, parity: str | None = "3%") -> Path:
    path = directory / f"m.{form}"
    if form == "fckpt":
        fastckpt.save(state(), path, durable=False)
    elif form == "safetensors":
        safetensors.torch.save_file(state(), path)
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=form == "pt")
    fastckpt.seal(path, parity=parity, durable=False)
    return path


def zero(path: Path, begin: int, size: int) -> bytes:
    raw = bytearray(path.read_bytes())
    raw[begin : begin + size] = bytes(len(raw[begin : begin + size]))
    path.write_bytes(raw)
    return bytes(raw)


def is_as_saved(loaded: dict[str, Any], names: Any = None) -> bool:
    return all(torch.equal(loaded[name], tensor) for name, tensor in state().items() if names is None or name in names)


def test_a_file_that_is_as_sealed_is_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def standing_of(source: Source, *rest: Any, **how: Any) -> Standing:
        compared.append(source.path)
        return standing.standing_of(source, *rest, **how)

    for asks in (remains, surveyed):
        monkeypatch.setattr(asks, "standing_of", standing_of)
    path = sealed(tmp_path, "safetensors")
    report = fastckpt.salvage(path)
    assert (report.exit_code, report.findings, report.healed) == (0, [], [])
    assert compared == [str(path)]
    # Of a seal whose end is gone the report tells, whatever that still proves.
    seal = Path(sums_path(path))
    zero(seal, seal.stat().st_size - 4096, 4096)
    assert "proves nothing" in fastckpt.salvage(path).findings[0].message


@pytest.mark.parametrize("form", FORMS)
def test_a_lost_beginning(tmp_path: Path, form: str) -> None:
    """With the header or the superblock, and the names of all tensors: all is as if nothing had happened."""
    path = sealed(tmp_path, form)
    damaged = zero(path, 0, 4 * LEAF)
    out = tmp_path / f"out.{form.split('.')[-1]}"
    dry = fastckpt.salvage(path)
    assert (dry.exit_code, dry.complete, dry.counts["intact"]) == (1, True, 10)
    assert [(f.offset, f.size, f.loss) for f in dry.healed] == [(0, 4 * LEAF, False)]
    assert dry.next_step.startswith("fastckpt repair ")
    report = fastckpt.salvage(path, out, durable=False)
    assert (report.exit_code, report.complete, report.size) == (1, True, len(damaged))
    assert is_as_saved(fastckpt.load(out))
    assert path.read_bytes() == damaged
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, f"{path.name}.fckpt-sums", out.name])


def test_the_report_says_what_was_healed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sealed(tmp_path, "safetensors")
    zero(path, 0, 100)
    assert main(["salvage", str(path)]) == 1
    told = capsys.readouterr().out
    assert "healed first by its parity, every byte proven:\n  bytes 0-16383  leaf 0 " in told
    assert "would come back: 10 of 10 tensors (complete)" in told


@pytest.mark.parametrize("form", FORMS)
def test_a_part_heals(tmp_path: Path, form: str) -> None:
    """Three leaves of one group are lost: the others heal, and what lies in these three is not called intact."""
    path = sealed(tmp_path, form)
    good = path.read_bytes()
    groups = math.ceil(len(good) / LEAF / 64)
    assert groups == 2
    for leaf in (1, 20, 22, 24):  # 1 and one more of the other group would heal; of 20, 22 and 24 none does.
        zero(path, leaf * LEAF, LEAF)
    report = fastckpt.salvage(path, tmp_path / "out.fckpt", include=["damaged", "partial"], durable=False)
    assert [f.offset for f in report.healed] == [LEAF]
    assert report.exit_code == 3
    intact = [name for name, fate in report.tensors.items() if fate.status.value == "intact"]
    assert is_as_saved(fastckpt.load(tmp_path / "out.fckpt"), intact)
    for name, fate in report.tensors.items():
        assert fate.offset is not None
        leaves = range(fate.offset // LEAF, -(-(fate.offset + fate.nbytes) // LEAF))
        assert (fate.status.value == "intact") == (not {20, 22, 24}.intersection(leaves)), (name, fate)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("leaves", [1.5, 2.9, 6.5])
def test_a_cut(tmp_path: Path, form: str, leaves: float) -> None:
    path = sealed(tmp_path, form)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) - int(leaves * LEAF)])
    report = fastckpt.salvage(path, tmp_path / "out.fckpt", durable=False)
    came_back = bool(report.healed)
    # Two groups, and a short last leaf: four leaves of the end come back.
    assert came_back == (leaves < 4)
    assert report.complete >= came_back
    assert is_as_saved(fastckpt.load(tmp_path / "out.fckpt"), report.written)
    assert report.size == path.stat().st_size


def test_bytes_behind(tmp_path: Path) -> None:
    path = sealed(tmp_path, "pt")
    with open(path, "ab") as file:
        file.write(b"more" * 50_000)
    report = fastckpt.salvage(path, tmp_path / "out.pt", durable=False)
    assert [f.message for f in report.healed] == ["200,000 bytes behind all that was sealed"]
    assert (report.exit_code, report.complete) == (1, True)
    assert is_as_saved(fastckpt.load(tmp_path / "out.pt"))


def test_a_damaged_seal_heals_as_well(tmp_path: Path) -> None:
    path = sealed(tmp_path, "safetensors")
    zero(path, 0, LEAF)
    zero(Path(sums_path(path)), 0, 4096)
    report = fastckpt.salvage(path)
    assert (report.exit_code, report.complete, len(report.healed)) == (1, True, 1)


@pytest.mark.parametrize("form", ["fckpt", "pt"])
def test_a_file_that_was_written_anew_is_not_what_it_was(tmp_path: Path, form: str) -> None:
    path = sealed(tmp_path, form)
    new = state()
    new["layer3"][7, 7] = 12345.0
    if form == "fckpt":
        fastckpt.save(new, path, durable=False)
    else:
        torch.save(new, path)
    report = fastckpt.salvage(path, tmp_path / "out.fckpt", durable=False)
    assert report.healed == []
    if form == "fckpt":
        assert fastckpt.load(tmp_path / "out.fckpt")["layer3"][7, 7] == 12345.0


def test_a_shard_of_a_set(tmp_path: Path) -> None:
    place = tmp_path / "set"
    fastckpt.dcp.save({"a": torch.arange(300_000), "b": torch.ones(9)}, place, parity="3%", no_dist=True, durable=False)
    (shard,) = place.glob("shard*.fckpt")
    damaged = zero(shard, 0, 2 * LEAF)
    assert fastckpt.salvage(place).complete
    report = fastckpt.salvage(place, tmp_path / "out.fckpt", durable=False)
    assert (report.exit_code, report.complete) == (1, True)
    assert [f.message.split(":")[0] for f in report.healed] == ["shard-0001-00000.fckpt (shard 1 of 1)"]
    assert torch.equal(fastckpt.load(tmp_path / "out.fckpt")["a"], torch.arange(300_000))
    assert shard.read_bytes() == damaged
    assert sorted(os.listdir(tmp_path)) == ["out.fckpt", "set"]


@pytest.mark.parametrize(("which", "at"), [("set.fckpt", "inside"), ("shard", "inside"), ("shard", "beside")])
def test_what_makes_a_set_whole_is_named(tmp_path: Path, which: str, at: Any) -> None:
    """Whichever of its files is damaged: without its manifest nothing tells which shards are of one save."""
    place = tmp_path / "set"
    fastckpt.dcp.save(state(), place, parity="3%", parity_at=at, no_dist=True, durable=False)
    path = next(each for each in place.iterdir() if each.name.startswith(which) and each.suffix == ".fckpt")
    good = path.read_bytes()
    zero(path, 4096, 4096)
    path.write_bytes(path.read_bytes()[:-4096])
    command = f"fastckpt repair {path}"
    assert fastckpt.salvage(place).next_step == f"{command}  # makes the whole file what it was"
    written = fastckpt.salvage(place, tmp_path / "out.fckpt", durable=False)
    assert f"its parity heals the whole file: {command}" in written.notes
    assert fastckpt.repair(path, durable=False).state == "healed"
    assert path.read_bytes() == good
    path.with_name(f"{path.name}.damaged").unlink()
    assert (fastckpt.salvage(place).exit_code, fastckpt.salvage(place).notes) == (0, [])


def test_a_sealed_manifest_without_which_nothing_is_known(tmp_path: Path) -> None:
    place = tmp_path / "step"
    many = {f"layer{n}": torch.full((3,), n) for n in range(400)}
    torch.distributed.checkpoint.save(many, checkpoint_id=str(place), no_dist=True)
    fastckpt.seal(place / ".metadata", parity="3%", durable=False)
    zero(place / ".metadata", 0, 100)
    with pytest.raises(FastckptError) as caught:
        fastckpt.salvage(place)
    assert caught.value.next_step == f"fastckpt repair {place / '.metadata'}"
    assert fastckpt.repair(place / ".metadata", durable=False).state == "healed"
    assert len(fastckpt.salvage(place).tensors) == 400


def test_without_parity_nothing_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sealed(tmp_path, "safetensors", parity=None)
    zero(path, 5 * LEAF, 10)
    monkeypatch.setattr(HealedCopy, "write", None)
    report = fastckpt.salvage(path)
    assert (report.exit_code, report.counts["damaged"]) == (3, 1)


@pytest.mark.parametrize("early", [True, False])
def test_without_room_it_is_salvaged_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    path = sealed(tmp_path, "safetensors")
    zero(path, 5 * LEAF, 10)

    def full(*_: object) -> None:
        raise OutOfSpaceError("no room", errno=28)

    monkeypatch.setattr(healed_view if early else healed_copy, "check_space" if early else "reserve_space", full)
    monkeypatch.setattr(healed_copy, "reflink", lambda *_: False)
    report = fastckpt.salvage(path, tmp_path / "out.safetensors", durable=False)
    assert (report.exit_code, report.healed) == (3, [])
    assert "its parity was not used: no room" in report.notes
    assert len(report.written) == 9


@pytest.mark.parametrize("cases", [12, pytest.param(400, marks=pytest.mark.thorough)])
def test_what_comes_back_is_what_was_saved(tmp_path: Path, cases: int) -> None:
    """Whatever happens to file and seal."""
    goods = {}
    for form in FORMS:
        path = sealed(tmp_path, form)
        goods[form] = path, path.read_bytes(), Path(sums_path(path)).read_bytes()
    healed = 0
    for case in range(cases):
        rng = random.Random(case)
        path, good, sums = goods[rng.choice(FORMS)]
        raws = bytearray(good), bytearray(sums)
        for _ in range(rng.randrange(1, 5)):
            raw = raws[rng.random() < 0.2]
            at, size = rng.randrange(len(raw)), rng.choice([1, 4096, LEAF, 4 * LEAF])
            raw[at : at + size] = rng.randbytes(len(raw[at : at + size]))
        if rng.random() < 0.2:
            del raws[0][-rng.randrange(1, 6 * LEAF) :]
        path.write_bytes(raws[0])
        Path(sums_path(path)).write_bytes(raws[1])
        out = tmp_path / "out.fckpt"
        out.unlink(missing_ok=True)
        report = fastckpt.salvage(path, out, durable=False, threads=1)
        healed += bool(report.healed)
        assert path.read_bytes() == raws[0]
        if out.exists():
            intact = [n for n, fate in report.tensors.items() if fate.status.value == "intact" and n in report.written]
            loaded = fastckpt.load(out, verify=True)
            assert is_as_saved(loaded, [name for name in intact if name in loaded]), case
    assert healed > cases / 5

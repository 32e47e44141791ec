"""What fastckpt does not understand comes back all the same: with the pickle as it was saved, if its CRC-32 matches."""

from __future__ import annotations

import argparse
import dataclasses
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch

import fastckpt

CASES = Path(__file__).parents[2].parent / "shared" / "cases" / "pt"


def records(path: Path) -> dict[str, bytes]:
    """The records of an archive by the part of their name behind the top directory."""
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def state() -> dict[str, object]:
    """Tensors in plain sight, and tensors inside of objects."""
    return {
        "model": {"a": torch.full((50,), 1.0), "b": torch.full((60,), 2.0)},
        "args": argparse.Namespace(hidden=torch.full((70,), 3.0), lr=0.1),
        "milestones": Counter({3: 1}),
    }


def flip(path: Path, value: float, size: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[raw.index(torch.full((size,), value).numpy().tobytes()) + 5] ^= 1
    path.write_bytes(raw)


def save(path: Path) -> Path:
    torch.save(state(), path)
    return path


def test_whole(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt")
    report = fastckpt.salvage(path, tmp_path / "b.pt")
    assert (report.exit_code, report.complete, report.structure) == (0, True, "whole")
    before, after = records(path), records(tmp_path / "b.pt")
    assert {name: after[name] for name in before if name != ".data/serialization_id"} == {
        name: data for name, data in before.items() if name != ".data/serialization_id"
    }
    loaded = torch.load(tmp_path / "b.pt", weights_only=False)
    assert torch.equal(loaded["args"].hidden, torch.full((70,), 3.0))
    assert loaded["milestones"] == Counter({3: 1})


def test_damage_in_what_is_not_understood(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt")
    flip(path, 3.0, 70)
    dry = fastckpt.salvage(path)
    report = fastckpt.salvage(path, tmp_path / "b.pt")
    assert (dry.exit_code, report.exit_code) == (3, 3)
    assert not dry.complete
    assert not report.complete
    assert report.counts["intact"] == 2
    assert any(finding.loss for finding in report.findings)
    loaded = torch.load(tmp_path / "b.pt", weights_only=False)
    assert torch.isnan(loaded["args"].hidden).all()
    assert loaded["args"].lr == 0.1
    assert torch.equal(loaded["model"]["a"], torch.full((50,), 1.0))
    assert any("filled" in note for note in report.notes)


def test_damage_that_was_asked_for_stands(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt")
    flip(path, 3.0, 70)
    fastckpt.salvage(path, tmp_path / "b.pt", include=["damaged"])
    hidden = torch.load(tmp_path / "b.pt", weights_only=False)["args"].hidden
    assert (hidden != 3.0).sum() == 1


def test_damage_in_a_tensor(tmp_path: Path) -> None:
    """It is filled, since its place in the pickle cannot be taken away; or taken from another checkpoint."""
    path = save(tmp_path / "a.pt")
    save(tmp_path / "donor.pt")
    flip(path, 2.0, 60)
    report = fastckpt.salvage(path, tmp_path / "b.pt")
    assert (report.exit_code, report.complete, report.broken) == (3, False, ["model.b"])
    loaded = torch.load(tmp_path / "b.pt", weights_only=False)
    assert torch.isnan(loaded["model"]["b"]).all()
    assert torch.equal(loaded["args"].hidden, torch.full((70,), 3.0))
    filled = fastckpt.salvage(path, tmp_path / "c.pt", backfill=tmp_path / "donor.pt")
    assert (filled.complete, list(filled.backfilled)) == (True, ["model.b"])
    assert torch.equal(torch.load(tmp_path / "c.pt", weights_only=False)["model"]["b"], torch.full((60,), 2.0))


def test_a_fckpt_holds_values_of_python(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt")
    report = fastckpt.salvage(path, tmp_path / "b.fckpt")
    assert (report.exit_code, report.complete) == (0, True)
    loaded = fastckpt.load(tmp_path / "b.fckpt")
    assert loaded["args"].lr == 0.1
    assert torch.equal(loaded["args"].hidden, torch.full((70,), 3.0))
    assert loaded["milestones"] == Counter({3: 1})


@dataclasses.dataclass
class Config:
    """A class of a program."""

    rate: float
    mean: torch.Tensor


def test_a_legacy_file(tmp_path: Path) -> None:
    """Its pickle is proven by nothing and is not kept. Values of Python are written anew as what they are."""
    torch.save(state(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    report = fastckpt.salvage(tmp_path / "a.pt", tmp_path / "b.pt", include=["unverified"])
    assert (report.complete, report.notes) == (True, [])
    loaded = torch.load(tmp_path / "b.pt", weights_only=False)
    assert type(loaded["args"]) is argparse.Namespace
    assert loaded["args"].lr == 0.1
    assert torch.equal(loaded["args"].hidden, torch.full((70,), 3.0))
    assert loaded["milestones"] == Counter({3: 1})


def test_objects_in_a_legacy_file(tmp_path: Path) -> None:
    """A .pt written anew has plain values in the place of objects."""
    whole = {**state(), "config": Config(0.5, torch.ones(3))}
    torch.save(whole, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    report = fastckpt.salvage(tmp_path / "a.pt", tmp_path / "b.pt", include=["unverified"])
    assert not report.complete
    assert any("come back as plain values: " in note and "Config" in note for note in report.notes)
    loaded = torch.load(tmp_path / "b.pt", weights_only=False)
    assert loaded["config"]["rate"] == 0.5
    assert torch.equal(loaded["config"]["mean"], torch.ones(3))
    assert loaded["milestones"] == Counter({3: 1})


def test_a_plain_state_loses_its_damaged_tensors(tmp_path: Path) -> None:
    """Where all is understood, nobody gets filled tensors without having asked for them."""
    torch.save({"a": torch.full((50,), 1.0), "b": torch.full((60,), 2.0)}, tmp_path / "a.pt")
    flip(tmp_path / "a.pt", 2.0, 60)
    fastckpt.salvage(tmp_path / "a.pt", tmp_path / "b.pt")
    assert list(torch.load(tmp_path / "b.pt")) == ["a"]


@pytest.mark.skipif(not CASES.exists(), reason="the cases are not here")
@pytest.mark.parametrize("name", ["d_fsdp2_flip", "yolo_flip"])
def test_a_flipped_bit_below_objects(tmp_path: Path, name: str) -> None:
    report = fastckpt.salvage(CASES / f"{name}.pt", tmp_path / "b.pt", durable=False)
    assert (report.exit_code, report.complete, report.structure) == (3, False, "whole")
    whole = CASES / f"{name.removesuffix('_flip')}{'_whole' if name == 'yolo_flip' else ''}.pt"
    before, after = records(whole), records(tmp_path / "b.pt")
    assert after["data.pkl"] == before["data.pkl"]
    assert sum(after[key] != data for key, data in before.items() if key.startswith("data/")) == 1


@pytest.mark.skipif(not CASES.exists(), reason="the cases are not here")
@pytest.mark.parametrize("name", ["yolo_whole", "d_fsdp2", "in_objects", "pl_plain", "ds_like", "hf_rng_state"])
def test_whole_files_of_others(tmp_path: Path, name: str) -> None:
    (path,) = CASES.glob(f"{name}.*")
    report = fastckpt.salvage(path, tmp_path / "b.pt", durable=False)
    assert (report.exit_code, report.complete) == (0, True)
    before, after = records(path), records(tmp_path / "b.pt")
    assert all(after[key] == data for key, data in before.items() if key.startswith("data"))

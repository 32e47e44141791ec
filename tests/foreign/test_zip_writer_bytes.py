"""What torch always writes the same in the directory of a .pt: another byte there is a finding, never intact."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

import fastckpt

PLACES = {"program": 4, "system": 5, "internal": 36, "internal, second byte": 37, "external": 38, "its last byte": 41}


@pytest.mark.parametrize("records", ["one", "all"])
@pytest.mark.parametrize("place", PLACES)
def test_of_the_records(place: str, records: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(3), "b": torch.ones(5)}, path)
    raw = bytearray(path.read_bytes())
    at = raw.find(b"PK\x01\x02")
    while at >= 0:
        raw[at + PLACES[place]] ^= 4
        at = raw.find(b"PK\x01\x02", at + 1) if records == "all" else -1
    path.write_bytes(raw)
    report = fastckpt.verify(path)
    assert not report.ok
    assert not report.damaged_tensors


@pytest.mark.parametrize("byte", [12, 13, 14, 15])
def test_of_the_end(byte: int, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(3)}, path)
    raw = bytearray(path.read_bytes())
    raw[raw.rfind(b"PK\x06\x06") + byte] ^= 1
    path.write_bytes(raw)
    assert not fastckpt.verify(path).ok


def test_files_of_torch_and_of_other_programs_are_as_before(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    assert fastckpt.verify(tmp_path / "a.pt").ok
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for number, record in enumerate(old.infolist()):
            again = zipfile.ZipInfo(record.filename)
            again.external_attr = (0o600 + number) << 16
            new.writestr(again, old.read(record))
    assert fastckpt.verify(tmp_path / "b.pt").ok

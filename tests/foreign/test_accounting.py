"""Every byte of a foreign file is named or a finding, and every record is summed, whoever refers to it."""

from __future__ import annotations

import argparse
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fastckpt
from fastckpt.errors import DamagedError
from fastckpt.findings import Kind


def saved(path: Path) -> bytes:
    torch.save({"a": torch.arange(3000.0), "b": torch.ones(7, dtype=torch.int8)}, path)
    return path.read_bytes()


def data_of(path: Path, name: str) -> int:
    """Where the bytes of a record begin."""
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith(name))
    raw = path.read_bytes()[info.header_offset :]
    name_size, extra_size = struct.unpack_from("<HH", raw, 26)
    return info.header_offset + 30 + int(name_size) + int(extra_size)


def flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def test_a_whole_file_has_no_finding(tmp_path: Path) -> None:
    saved(tmp_path / "m.pt")
    assert fastckpt.verify(tmp_path / "m.pt").findings == []


@pytest.mark.parametrize(
    ("spoil", "size"),
    [
        (lambda raw: b"junk" * 25 + raw, 100),
        (lambda raw: raw + b"junk" * 25, 100),
    ],
    ids=["in front", "behind"],
)
def test_bytes_that_belong_to_nothing(tmp_path: Path, spoil: Callable[[bytes], bytes], size: int) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(spoil(saved(path)))
    report = fastckpt.verify(path)
    assert not report.ok
    assert report.exit_code in (1, 2)
    assert any(f.kind is not Kind.UNPROVEN and f.size >= min(size, 1) for f in report.findings)
    with pytest.raises(DamagedError):
        fastckpt.convert(path, tmp_path / "m.fckpt", replace=True)
    assert path.exists()


def test_bytes_behind_a_legacy_file(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"a": torch.ones(100)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes() + b"more")
    report = fastckpt.verify(path)
    assert (report.ok, report.exit_code) == (False, 1)
    assert any(f.size == 4 and f.offset == path.stat().st_size - 4 for f in report.findings)


def test_padding_and_descriptors_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    raw = saved(path)
    at = data_of(path, "data/0")
    for place in (at - 1, at + 12_000 + 5):
        path.write_bytes(flipped(raw, place))
        report = fastckpt.verify(path)
        assert not report.ok, place
        assert report.damaged_tensors == []


def test_a_record_below_an_object_that_is_not_understood(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"args": argparse.Namespace(weight=torch.arange(500.0)), "b": torch.ones(3)}, path)
    assert fastckpt.verify(path).findings == []
    raw = path.read_bytes()
    path.write_bytes(flipped(raw, raw.index(torch.arange(500.0).numpy().tobytes()) + 999))
    report = fastckpt.verify(path)
    assert not report.ok
    assert report.exit_code == 2
    assert any(f.kind is Kind.ROTTED for f in report.findings)


def two_archives(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.arange(2000.0), torch.arange(500)
    with open(path, "wb") as file:
        torch.save({"w": first}, file)
        torch.save(second, file)
    return first, second


def test_archives_one_behind_the_other_are_one_list(tmp_path: Path) -> None:
    path = tmp_path / "two.pt"
    first, second = two_archives(path)
    assert fastckpt.verify(path).findings == []
    assert fastckpt.verify(path).tensors_total == 2
    state = fastckpt.load(path)
    assert torch.equal(state[0]["w"], first)
    assert torch.equal(state[1], second)
    original = path.read_bytes()
    fastckpt.convert(path, tmp_path / "two.fckpt", replace=True)
    fastckpt.convert(tmp_path / "two.fckpt", tmp_path / "back.pt")
    assert (tmp_path / "back.pt").read_bytes() == original


def test_damage_in_an_archive_that_is_not_the_last(tmp_path: Path) -> None:
    path = tmp_path / "two.pt"
    first, _ = two_archives(path)
    raw = path.read_bytes()
    path.write_bytes(flipped(raw, raw.index(first.numpy().tobytes()) + 4000))
    report = fastckpt.verify(path)
    assert (report.ok, report.exit_code) == (False, 2)
    with pytest.raises(DamagedError):
        fastckpt.load(path)
    with pytest.raises(DamagedError):
        fastckpt.convert(path, tmp_path / "two.fckpt", replace=True)
    assert path.exists()

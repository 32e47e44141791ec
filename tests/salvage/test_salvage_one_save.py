"""Records without a directory: are they of one save? torch's last record tells, or it is said that nothing does."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
import torch
from salvage.test_salvage_mixed import COUNT, spans, state

import fastckpt


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(state(1), tmp_path / "a.pt")
    return tmp_path / "a.pt"


def directory_of(path: Path) -> int:
    with zipfile.ZipFile(path) as archive:
        return archive.start_dir


def other(path: Path) -> bytes:
    """Another save under the same name, of the same length."""
    place = path.parent / "other" / path.name
    place.parent.mkdir(exist_ok=True)
    torch.save(state(2), place)
    return place.read_bytes()


def intact(report: fastckpt.SalvageReport) -> set[str]:
    return {name for name, fate in report.tensors.items() if fate.status.value == "intact"}


ALL = {f"h.{n}.w" for n in range(COUNT)}


@pytest.mark.parametrize("what", ["directory", "descriptors too", "headers too", "sums of data.pkl too"])
def test_the_last_record_proves_all_others(path: Path, what: str) -> None:
    """With the names and the CRC-32s of the bytes its digits are made again: nothing else is needed."""
    raw, at = bytearray(path.read_bytes()), directory_of(path)
    del raw[at:]
    for n, (header, start, end) in spans(path).items():
        if what == "descriptors too":
            raw[end - 16 : end] = bytes(16)
        if what == "headers too" and n % 3:
            raw[header:start] = bytes(start - header)
    if what == "sums of data.pkl too":
        behind = raw.index(b"PK\x07\x08")
        raw[behind : behind + 16] = bytes(16)
    path.write_bytes(raw)
    report = fastckpt.salvage(path, path.with_name("b.pt"))
    assert intact(report) == ALL
    assert (report.complete, report.exit_code, report.structure) == (True, 1, "whole")
    assert path.with_name("b.pt").read_bytes().count(b"serialization_id") == 2


@pytest.mark.parametrize("gone", ["half of it", "all of it"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_one_save_over_another(path: Path, share: float, gone: str) -> None:
    first, second, found = path.read_bytes(), other(path), spans(path)
    at, end = int(len(first) * share), directory_of(path)
    keep = end + (len(first) - end) // 2 if gone == "half of it" else end
    path.write_bytes(second[:at] + first[at:keep])
    report = fastckpt.salvage(path)
    assert not report.complete
    assert report.exit_code != 0
    new = {f"h.{n}.w" for n, (_, start, _) in found.items() if start < at}
    assert not intact(report) & new or not intact(report) - new
    named = {name for finding in fastckpt.verify(path).findings for name in finding.tensors}
    assert ALL - intact(report) <= named


def test_without_the_last_record_it_is_said(path: Path) -> None:
    first, second, found = path.read_bytes(), other(path), spans(path)
    at = found[COUNT // 2][0]
    for raw in (second[:at] + first[at : found[COUNT - 1][2]], first[: found[COUNT - 1][2]]):
        path.write_bytes(raw)
        report = fastckpt.salvage(path)
        assert intact(report) == ALL
        assert (report.complete, report.exit_code) == (False, 1)
        said = [finding.message for finding in report.findings]
        assert any("nothing proves that all of it is of one save" in text for text in said)
        assert any("one save" in finding.message for finding in fastckpt.verify(path).findings)


@pytest.mark.parametrize("last", [True, False])
def test_a_copy_behind_a_header_in_place(path: Path, last: bool) -> None:
    """Bytes and descriptor of another tensor: neither of the two is called intact, unless the last record tells."""
    raw, found = bytearray(path.read_bytes()), spans(path)
    raw[found[7][1] : found[7][2]] = raw[found[3][1] : found[3][2]]
    path.write_bytes(raw[: directory_of(path) if last else found[COUNT - 1][2]])
    report = fastckpt.salvage(path)
    assert "h.7.w" not in intact(report)
    assert intact(report) == (set() if last else ALL - {"h.3.w", "h.7.w"})
    assert not report.complete


def test_small_tensors_may_be_equal(path: Path) -> None:
    """A step count of four bytes is the same for all parameters: no device writes so few alone."""
    steps = {f"step.{n}": torch.tensor(7.0) for n in range(COUNT)}
    torch.save(state(1) | steps, path)
    path.write_bytes(path.read_bytes()[: spans(path)[2 * COUNT - 1][2]])
    assert intact(fastckpt.salvage(path)) == ALL | set(steps)


def test_an_entry_of_the_directory_rotted(path: Path) -> None:
    """Descriptor and directory state other CRC-32s: the last record tells which of them is of this save."""
    raw = bytearray(path.read_bytes())
    entry = raw.index(b"PK\x01\x02", raw.index(b"data/5", directory_of(path)) - 60)
    (crc,) = struct.unpack_from("<I", raw, entry + 16)
    struct.pack_into("<I", raw, entry + 16, crc ^ 0x100)
    path.write_bytes(raw)
    report = fastckpt.salvage(path)
    assert intact(report) == ALL
    assert (report.complete, report.exit_code) == (True, 1)
    assert len(report.findings) == 1
    assert not fastckpt.verify(path).ok

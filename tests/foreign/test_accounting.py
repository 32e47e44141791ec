"""Every byte of a foreign file is named or a finding, and every record is summed, whoever refers to it."""

from __future__ import annotations

import argparse
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from zip_surgery import content_of, put_content

import fastckpt
from fastckpt.errors import DamagedError
from fastckpt.findings import Kind
from fastckpt.verdicts import Verdict

if TYPE_CHECKING:
    from typing_extensions import Buffer


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


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.thorough)])
def test_every_byte_around_the_records_is_looked_at(tmp_path: Path, every: int) -> None:
    path = tmp_path / "m.pt"
    raw = saved(path)
    payload = data_of(path, "data/0")
    around = [at for at in range(len(raw)) if not payload < at < payload + 11_999 and raw[at] != ord("Z")][::every]
    unseen = []
    for at in around:
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :])
        if fastckpt.verify(path, threads=1).ok:
            unseen.append(at)
    assert unseen == []


@pytest.mark.parametrize("comment", [b"", b"from somewhere"])
def test_an_archive_that_zipfile_added_to(tmp_path: Path, comment: bytes) -> None:
    """Its records are not torch's, which is no fault; a comment has no checksum."""
    path = tmp_path / "m.pt"
    saved(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("m/more.txt", b"more")
        archive.comment = comment
    report = fastckpt.verify(path)
    assert report.exit_code == fastckpt.salvage(path).exit_code == (1 if comment else 0)


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


NAMES = ["more.txt", "other/more.txt", "data/0", "version", "other/data/0", "__MACOSX/m/._data.pkl"]


@pytest.mark.parametrize(
    ("name", "method"), [*((name, zipfile.ZIP_STORED) for name in NAMES), ("more.txt", zipfile.ZIP_DEFLATED)]
)
def test_a_record_outside_of_the_folder_belongs_to_nothing(tmp_path: Path, name: str, method: int) -> None:
    """It is named with its bytes, summed, and never taken for one of the checkpoint, whatever it is called."""
    path = tmp_path / "m.pt"
    saved(path)
    content = torch.full((3000,), 7.0).numpy().tobytes()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, content, method)
    reports = [fastckpt.verify(path), fastckpt.salvage(path, tmp_path / "b.pt")]
    for report in reports:
        assert report.exit_code == 1
        (finding,) = report.findings
        assert (finding.kind, finding.loss) == (Kind.INCONSISTENT, False)
        assert f"the record {name} is outside of the folder m" in finding.message
        assert name.encode() in path.read_bytes()[: finding.offset][-60:]
    with pytest.raises(RuntimeError, match="not in a subdirectory m"):
        torch.load(path)
    for state in (fastckpt.load(path), torch.load(tmp_path / "b.pt")):
        assert torch.equal(state["a"], torch.arange(3000.0))
    with pytest.raises(DamagedError, match="outside of the folder"):
        fastckpt.convert(path, tmp_path / "m.fckpt", replace=True)
    fastckpt.convert(path, tmp_path / "m.fckpt")
    fastckpt.convert(tmp_path / "m.fckpt", tmp_path / "back.pt")
    assert (tmp_path / "back.pt").read_bytes() == path.read_bytes()
    if method == zipfile.ZIP_STORED:
        path.write_bytes(flipped(path.read_bytes(), path.read_bytes().index(content) + 99))
        rotted = fastckpt.verify(path)
        assert any(finding.kind is Kind.ROTTED for finding in rotted.findings)
        assert (rotted.exit_code, rotted.damaged_tensors) == (1, [])


def test_a_comment_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    saved(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"from somewhere"
    for report in (fastckpt.verify(path), fastckpt.salvage(path, tmp_path / "b.pt")):
        assert [finding.message for finding in report.findings] == [
            "a comment follows the directory, and nothing proves it"
        ]


@pytest.mark.parametrize("last", [True, False], ids=["the last record tells", "nothing tells"])
@pytest.mark.parametrize("name", ["data/0", "data.pkl", "version"])
def test_a_name_that_stands_twice(tmp_path: Path, name: str, last: bool) -> None:
    """As an archive that is added to has it. Which of the two is meant only torch's last record can say."""
    path = tmp_path / "m.pt"
    raw = bytearray(saved(path))
    content = content_of(raw, name)
    if not last:
        put_content(raw, ".data/serialization_id", b"1" * 40)
        path.write_bytes(raw)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(f"m/{name}", content[::-1])
    with pytest.raises(DamagedError, match="two records named"):
        fastckpt.load(path)
    for report in (fastckpt.verify(path), fastckpt.salvage(path, tmp_path / "b.pt")):
        (finding,) = report.findings
        assert (finding.kind, finding.size, finding.loss) == (Kind.INCONSISTENT, len(content), False)
        assert f"the name m/{name} twice" in finding.message
        assert ("one save" in finding.message) == (not last)
        assert report.exit_code == 1
        assert path.read_bytes()[finding.offset :].startswith(b"PK\x03\x04")
    assert fastckpt.salvage(path, tmp_path / "b.pt").complete == last


class _Pipe(io.RawIOBase):
    """Takes what is written, and cannot go back in it."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        self.taken += data
        return len(memoryview(data))


def written_anew(path: Path, to: Path, *, extra: bytes = b"", wide: bool = False) -> Path:
    """The same records, by another program."""
    pipe = _Pipe()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(pipe, "w") as new:
        for name in old.namelist():
            info = zipfile.ZipInfo(name)
            info.extra = extra
            with new.open(info, "w", force_zip64=wide) as record:
                record.write(old.read(name))
    to.write_bytes(pipe.taken)
    return to


def test_extra_fields_of_other_programs(tmp_path: Path) -> None:
    """Times and sizes of 64 bits are known, and what they say is compared; in any other field anything could stand."""
    saved(tmp_path / "m.pt")
    time = struct.pack("<HHBI", 0x5455, 5, 1, 0x5E000000)
    for extra, wide in ((b"", True), (time, False)):
        path = written_anew(tmp_path / "m.pt", tmp_path / "whole.pt", extra=extra, wide=wide)
        assert fastckpt.verify(path).verdict is Verdict.INTACT
        raw = path.read_bytes()
        for at in range(raw.index(b"data.pkl") + 8, raw.index(b"data.pkl") + 8 + (20 if wide else 9)):
            (tmp_path / "flipped.pt").write_bytes(raw[:at] + bytes([raw[at] ^ 0x84]) + raw[at + 1 :])
            assert not fastckpt.verify(tmp_path / "flipped.pt").ok, at
    for strange in (struct.pack("<HH", 0x7777, 500), struct.pack("<HH", 0xCAFE, 500)):
        path = written_anew(tmp_path / "m.pt", tmp_path / "strange.pt", extra=strange + bytes(500))
        assert fastckpt.verify(path).exit_code == 1


def test_a_deflated_record_without_bytes(tmp_path: Path) -> None:
    """A damaged size is a finding, and neither a zip bomb nor a surprise."""
    saved(tmp_path / "m.pt")
    with (
        zipfile.ZipFile(tmp_path / "m.pt") as old,
        zipfile.ZipFile(tmp_path / "p.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    raw = (tmp_path / "p.pt").read_bytes()
    entry = raw.index(b"PK\1\2")
    for at, size in ((20, 0), (24, 2**31)):
        for place in (entry + at, at - 2):  # Of the first record: in the directory, and in its header.
            (tmp_path / "damaged.pt").write_bytes(raw[:place] + struct.pack("<I", size) + raw[place + 4 :])
            assert fastckpt.verify(tmp_path / "damaged.pt").exit_code in (1, 2)


def test_what_nothing_refers_to_is_missing_in_what_is_salvaged(tmp_path: Path) -> None:
    saved(tmp_path / "m.pt")
    assert fastckpt.salvage(tmp_path / "m.pt", tmp_path / "all.pt", durable=False).complete
    for name in ("data/99", "data/", "notes.txt"):
        path = tmp_path / "more.pt"
        path.write_bytes((tmp_path / "m.pt").read_bytes())
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"m/{name}", b"more" * 100)
        report = fastckpt.salvage(path, tmp_path / "rescued.pt", durable=False)
        assert not report.complete
        assert any(name in note for note in report.notes)

"""A .pt that was packed again with compression: read like any other, within bounds, each record proven."""

from __future__ import annotations

import contextlib
import io
import os
import random
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from slowness import within
from states import assert_same

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import FastckptError, OutOfSpaceError, UnsupportedStateError
from fastckpt.stored.inspection import inspect_file

STATE = {
    "w": torch.arange(30_000, dtype=torch.float32).view(100, 300),
    "t": torch.ones(300, 40, dtype=torch.bfloat16).t(),
    "empty": torch.zeros(0),
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    "step": 3,
}


def packed(state: object, path: Path, *, folders: bool = False) -> Path:
    raw = io.BytesIO()
    torch.save(state, raw)
    with zipfile.ZipFile(raw) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        if folders:
            new.mkdir("archive")
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    return path


@pytest.fixture(params=[False, True])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return packed(STATE, tmp_path / "packed.pt", folders=request.param)


def test_every_way_to_read_it(path: Path) -> None:
    size = path.stat().st_size
    assert_same(fastckpt.load(path), STATE)
    assert_same(fastckpt.load(path, mmap=True), STATE)
    assert_same(fastckpt.load(io.BytesIO(path.read_bytes())), STATE)
    assert torch.equal(fastckpt.load(path, keys="w")["w"], STATE["w"])
    assert torch.equal(dict(fastckpt.stream(path))["t"], STATE["t"])
    report = fastckpt.verify(path)
    assert report.findings == []
    assert (report.as_dict()["verdict"], report.size) == ("intact", size)
    facts = inspect_file(path)
    assert (facts.size, facts.checksums, facts.counters) == (size, "crc32", {"optimizer.state.0.step": 3.0})


def test_every_command(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # plot writes its page here.
    before = path.read_bytes()
    assert main(["convert", str(path), str(tmp_path / "a.fckpt")]) == 0
    told = capsys.readouterr().out
    assert "no exact way back" in told
    assert "packed with compression" in told
    assert_same(fastckpt.load(tmp_path / "a.fckpt"), STATE)
    assert main(["diff", str(path), str(tmp_path / "a.fckpt")]) == 0
    assert main(["convert", str(tmp_path / "a.fckpt"), str(tmp_path / "back.pt")]) == 0
    assert_same(torch.load(tmp_path / "back.pt"), STATE)
    assert fastckpt.salvage(path, tmp_path / "s.pt").complete
    assert_same(torch.load(tmp_path / "s.pt"), STATE)
    for command in ("inspect", "verify", "plot"):
        assert main([command, str(path)]) == 0
    assert path.read_bytes() == before
    assert main(["convert", str(path), str(tmp_path / "b.fckpt"), "--replace"]) != 0
    assert path.exists()


@pytest.mark.parametrize("share", [1, pytest.param(4, marks=pytest.mark.thorough)])
def test_no_changed_byte_is_intact(path: Path, tmp_path: Path, share: int) -> None:
    raw, draw, bad = path.read_bytes(), random.Random(7), tmp_path / "bad.pt"
    with zipfile.ZipFile(path) as archive:
        headers = [info.header_offset + at for info in archive.infolist() for at in range(30)]
    # What programs other than torch say of themselves in the directory (version, attributes) can be anything.
    for at in draw.sample(range(raw.index(b"PK\x01\x02")), 25 * share) + draw.sample(headers, 15 * share):
        changed = bytearray(raw)
        changed[at] ^= 1 << draw.randrange(8)
        bad.write_bytes(changed)
        with contextlib.suppress(FastckptError):  # Refused, which is no claim.
            assert not fastckpt.verify(bad).ok, at
        with contextlib.suppress(FastckptError):
            assert_same(fastckpt.load(bad), STATE)


def damaged(raw: bytes, draw: random.Random) -> bytes:
    """The file with one of the things that happen to files."""
    changed, at = bytearray(raw), draw.randrange(len(raw))
    kind = draw.choice(("flip", "flips", "cut", "zeros", "inserted", "removed"))
    if kind == "cut":
        return raw[:at]
    for place in [at] if kind == "flip" else draw.sample(range(len(raw)), 4) if kind == "flips" else []:
        changed[place] ^= 1 << draw.randrange(8)
    if kind == "zeros":
        changed[at : at + 512] = bytes(len(changed[at : at + 512]))
    elif kind == "inserted":
        changed[at:at] = bytes(draw.randrange(1, 64))
    elif kind == "removed":
        del changed[at : at + draw.randrange(1, 64)]
    return bytes(changed)


FLAT = {"w": STATE["w"], "t": STATE["t"], "empty": STATE["empty"], "optimizer.state.0.step": torch.tensor(3.0)}


@pytest.mark.parametrize("count", [30, pytest.param(120, marks=pytest.mark.thorough)])
def test_each_record_that_stands_is_salvaged(path: Path, tmp_path: Path, count: int) -> None:
    """What is called intact is right, verify and salvage name the same tensors, and no damage is called whole."""
    raw, draw, bad, out = path.read_bytes(), random.Random(11), tmp_path / "bad.pt", tmp_path / "out.fckpt"
    rescued = 0
    for number in range(count):
        content = damaged(raw, draw)
        bad.write_bytes(content)
        try:
            told, report = fastckpt.verify(bad), fastckpt.salvage(bad, out, durable=False)
        except FastckptError:
            assert len(content) < 100, number
            continue
        assert content == raw or not told.ok, number
        assert report.size == len(content)
        assert all(0 <= f.offset <= len(content) and f.offset + f.size <= len(content) for f in told.findings), number
        assert not report.complete or report.counts["intact"] == len(FLAT)
        if report.structure == "none":
            continue
        lost = {name for name, fate in report.tensors.items() if fate.status not in ("intact", "unverified")}
        assert set(told.damaged_tensors) == lost, number
        with fastckpt.open(out) as file:
            for name, fate in report.tensors.items():
                if fate.status == "intact" and name in file.keys():  # noqa: SIM118
                    assert torch.equal(file[name], FLAT[name]), (number, name)
                    rescued += 1
    assert rescued > 2 * count


def test_salvage_keeps_the_pickle_and_fills_only_what_is_lost(tmp_path: Path) -> None:
    path = packed({"a": torch.arange(5000.0), "b": torch.ones(300), "c": complex(1, 2)}, tmp_path / "a.pt")
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    raw[info.header_offset + 500] ^= 16
    path.write_bytes(raw)
    report = fastckpt.verify(path)
    assert (report.exit_code, report.damaged_tensors) == (2, ["a"])
    assert info.header_offset == report.findings[0].offset
    salvaged = fastckpt.salvage(path, tmp_path / "out.pt")
    assert (salvaged.exit_code, salvaged.written, salvaged.complete) == (3, ["b"], False)
    assert_same(torch.load(tmp_path / "out.pt"), {"b": torch.ones(300), "c": complex(1, 2)})
    assert main(["plot", str(path), "-o", str(tmp_path / "page.html")]) in (0, 2)


class Streamed(io.BytesIO):
    """What cannot be sought in: sizes and CRC-32s stand behind the records, in descriptors."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise io.UnsupportedOperation

    def seek(self, *_: object) -> int:
        raise io.UnsupportedOperation


def test_packed_into_a_pipe_and_cut(tmp_path: Path) -> None:
    """The directory is lost with the end, and the local headers have neither sizes nor sums."""
    raw, target = io.BytesIO(), Streamed()
    torch.save(STATE, raw)
    with zipfile.ZipFile(raw) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    path = tmp_path / "a.pt"
    path.write_bytes(target.getvalue()[:-500])
    assert fastckpt.salvage(path).counts["intact"] == len(FLAT)


@pytest.mark.parametrize("count", [30_000])
def test_a_directory_that_names_one_place_many_times(count: int, tmp_path: Path) -> None:
    """Every record is inflated from one and the same place: the work is bounded by the file."""
    path = packed({"w": torch.zeros(100_000)}, tmp_path / "a.pt")
    raw = path.read_bytes()
    at, end = raw.index(b"PK\x01\x02"), raw.index(b"PK\x05\x06")
    entry = next(part for part in raw[at:end].split(b"PK\x01\x02") if b"/data/0" in part)
    rows = b"".join(b"PK\x01\x02" + entry.replace(b"data/0", b"data/%06d" % n) for n in range(1, count))
    rows = rows.replace(len(b"packed/data/0").to_bytes(2, "little"), len(b"packed/data/000000").to_bytes(2, "little"))
    tail = bytearray(raw[end:])
    tail[8:12] = min(count, 0xFFFF).to_bytes(2, "little") * 2
    tail[12:16] = len(rows).to_bytes(4, "little")
    path.write_bytes(raw[:at] + rows + tail)
    start = time.process_time()
    with contextlib.suppress(FastckptError):
        fastckpt.verify(path)
    assert within(time.process_time() - start, 10)


def test_bytes_that_belong_to_nothing_are_still_found(path: Path) -> None:
    path.write_bytes(b"strange!" + path.read_bytes())
    report = fastckpt.verify(path)
    assert not report.ok
    assert any(finding.offset == 0 and finding.size == 8 for finding in report.findings)


@pytest.mark.thorough
def test_bomb(tmp_path: Path) -> None:
    path = packed({"w": torch.zeros(50_000_000)}, tmp_path / "bomb.pt")
    assert path.stat().st_size < 300_000
    for call in (fastckpt.load, fastckpt.verify):
        with pytest.raises(UnsupportedStateError, match=r"zip bomb.*zip -0"):
            call(path)


def test_room_and_what_is_left(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(room))
    before = len(os.listdir("/proc/self/fd"))
    fastckpt.load(path)
    assert os.listdir(room) == []
    assert len(os.listdir("/proc/self/fd")) == before

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OutOfSpaceError, match="temporary file"):
        fastckpt.load(path)


def test_objects_do_not_come_back(tmp_path: Path) -> None:
    path = packed({"m": torch.nn.Linear(2, 2)}, tmp_path / "m.pt")
    assert fastckpt.load(path, keys="*").keys() == {"m.weight", "m.bias"}
    with pytest.raises(UnsupportedStateError, match="zip -0"):
        fastckpt.convert(path, tmp_path / "m.fckpt")


def test_no_tensor_is_given_a_place_in_a_file_that_is_packed(path: Path) -> None:
    report = fastckpt.salvage(path)
    assert report.tensors
    assert all(fate.status.value == "intact" and fate.offset is None for fate in report.tensors.values())

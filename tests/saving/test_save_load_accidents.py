"""No checkpoint, no file, no permission, no space, no sector, no such dtype or device."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from states import (
    assert_same,
    pattern,
)

import fastckpt
from fastckpt.errors import (
    CheckpointIOError,
    CheckpointNotFoundError,
    NotACheckpointError,
    OutOfSpaceError,
    UnsupportedStateError,
    UsageError,
)
from fastckpt.tensor import dtypes

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


# Files that are no checkpoints, and what the system refuses


def old_file(path: Path) -> bytes:
    fastckpt.save({"old": torch.arange(1000)}, path)
    return path.read_bytes()


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n", "git-lfs"),
    "HTML": (b"<!DOCTYPE html>\n<html><body>Not found</body></html>", "HTML"),
    "text": (b"hello world", r"this is a text file \(found hello world\)"),
    "short": (b"\x89", "too few"),
    "zeros": (bytes(100_000), "zero"),
    "noise": (bytes(pattern(50_000).numpy()), "neither"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(20_000), "gzip"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_no_checkpoint(tmp_path: Path, name: str) -> None:
    raw, words = BAD_FILES[name]
    path = tmp_path / "s.fckpt"
    path.write_bytes(raw)
    destination = {"old": torch.zeros(1000)}
    for action in (
        lambda: fastckpt.load(path),
        lambda: fastckpt.load(path, mmap=True, keys="x"),
        lambda: fastckpt.open(path),
        lambda: fastckpt.verify(path),
        lambda: fastckpt.load_into(destination, path),
        lambda: fastckpt.convert(path, tmp_path / "t.pt"),
        lambda: fastckpt.convert(path),
    ):
        with pytest.raises(NotACheckpointError, match=words) as caught:
            action()
        assert caught.value.path == str(path)
    assert not destination["old"].any()
    assert [p.name for p in tmp_path.iterdir()] == ["s.fckpt"]


def test_directory_and_missing(tmp_path: Path) -> None:
    for action in (fastckpt.load, fastckpt.open, fastckpt.verify):
        with pytest.raises(NotACheckpointError, match="directory"):
            action(tmp_path)
        with pytest.raises(CheckpointNotFoundError, match="not found") as caught:
            action(tmp_path / "missing")
        assert isinstance(caught.value, FileNotFoundError)
        assert caught.value.errno == 2
    with pytest.raises(CheckpointIOError):
        fastckpt.save({}, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give up its rights")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "dir" / "s"
    path.parent.mkdir()
    before = old_file(path)
    path.chmod(0o600)
    for parent in [tmp_path, *tmp_path.parents][:4]:
        if parent.stat().st_uid == os.getuid() and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    path.parent.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(CheckpointIOError, match=r"[Pp]ermission"):
            fastckpt.load(path)
        with pytest.raises(CheckpointIOError, match=r"[Pp]ermission"):
            fastckpt.save({}, path)
    finally:
        os.seteuid(0)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
def test_disk_full(small_fs: Path, tmp_path: Path, codec: str) -> None:
    path = small_fs / "s"
    before = old_file(path)
    with pytest.raises(OutOfSpaceError):
        fastckpt.save({"big": pattern(5_000_000)}, path, codec=codec)
    torch.save({"big": pattern(5_000_000)}, tmp_path / "big.pt")
    with pytest.raises(OutOfSpaceError):
        fastckpt.convert(tmp_path / "big.pt", path, to="fckpt", codec=codec)
    assert path.read_bytes() == before
    assert [p.name for p in small_fs.iterdir()] == ["s"]


def test_disk_full_on_the_way_out(small_fs: Path, tmp_path: Path) -> None:
    fastckpt.save({"big": pattern(5_000_000)}, tmp_path / "s.fckpt")
    torch.save({"big": pattern(5_000_000)}, tmp_path / "big.pt")
    fastckpt.convert(tmp_path / "big.pt", tmp_path / "exact.fckpt")
    for source in ("s.fckpt", "exact.fckpt"):
        for suffix in ("pt", "safetensors"):
            with pytest.raises(OutOfSpaceError):
                fastckpt.convert(tmp_path / source, small_fs / f"x.{suffix}")
    assert list(small_fs.iterdir()) == []


def test_damage_in_a_sector_the_disk_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad sector gives an error, not wrong bytes: the other copy must stand in all the same."""
    path = tmp_path / "s"
    state = {"a": pattern(300_000), "b": [pattern(100)]}
    fastckpt.save(state, path)
    with fastckpt.open(path) as ck:
        sections = [section.extent for section in ck._file.footer.sections]
        headers = [record.header for record in ck._file.records]
    pread = os.pread
    # What could not be read together with others is read alone, which is what fails here.
    monkeypatch.setattr(
        "fastckpt.stored.verify_fckpt.read_parts", lambda source, parts, threads=None: [None] * len(parts)
    )
    for bad in [*sections, *headers, (0, 4096)]:

        def failing(fd: int, size: int, offset: int, bad: tuple[int, int] = bad) -> bytes:
            if offset < bad[0] + bad[1] and bad[0] < offset + size:
                raise OSError(5, "Input/output error")
            return pread(fd, size, offset)

        monkeypatch.setattr(os, "pread", failing)
        assert_same(fastckpt.load(path), state)
        assert_same(fastckpt.load(path, mmap=True), state)
        report = fastckpt.verify(path)
        monkeypatch.setattr(os, "pread", pread)
        assert not report.ok
        assert [(f.offset, f.size) for f in report.findings] == [tuple(bad)]
        assert [f.kind.value for f in report.findings] == ["unreadable"]
        assert report.damaged_tensors == []


@pytest.mark.parametrize("options", [{}, {"mmap": True}, {"verify": False}])
def test_dtype_that_this_torch_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    """Refused before a byte is read: the damage at the end of the file is not what is told."""
    path = tmp_path / "s.fckpt"
    fastckpt.save({"a": torch.ones(3), "half": torch.ones(3).half(), "more": torch.ones(200_000).half()}, path)
    with fastckpt.open(path) as ck:
        place = ck._file.records[-1].payload.offset
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    monkeypatch.setattr(dtypes, "_BY_NAME", {k: v for k, v in dtypes._BY_NAME.items() if k != "float16"})
    for load in (functools.partial(fastckpt.load, **options), lambda path: next(iter(fastckpt.stream(path)))):
        with pytest.raises(UnsupportedStateError, match="has no dtype float16") as caught:
            load(path)
        assert (caught.value.path, caught.value.tensor) == (str(path), "half")
    assert list(fastckpt.load(path, keys="a", **options)) == ["a"]


@pytest.mark.parametrize("device", ["bogus", "cuda:x", None])
def test_no_device_of_this_name(tmp_path: Path, device: Any) -> None:
    fastckpt.save({"x": torch.ones(3)}, tmp_path / "s")
    for action in (fastckpt.load, fastckpt.stream):
        with pytest.raises(UsageError, match="no device is called so") as caught:
            action(tmp_path / "s", device=device)
        assert repr(device) in str(caught.value)

"""Free space: asked for, reserved, and said in units a person reads."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastckpt.errors import OutOfSpaceError
from fastckpt.io import space
from fastckpt.io.space import check_space, free_bytes, readable_size, reserve_space


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1 << 20, "1.0 MiB"),
        (123_456_789_012, "115.0 GiB"),
        (1 << 40, "1.0 TiB"),
        (1 << 70, "1048576.0 PiB"),
    ],
)
def test_readable_size(size: int, text: str) -> None:
    assert readable_size(size) == text


def statvfs(**fields: int) -> SimpleNamespace:
    return SimpleNamespace(**{"f_blocks": 100, "f_bfree": 20, "f_bavail": 10, "f_frsize": 4096, **fields})


@pytest.mark.parametrize(("user", "free"), [(0, 20 * 4096), (1000, 10 * 4096)])
def test_reserved_blocks_are_roots(monkeypatch: pytest.MonkeyPatch, user: int, free: int) -> None:
    monkeypatch.setattr(os, "statvfs", lambda fd: statvfs())
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert free_bytes(0) == free
    check_space(0, free, "a")
    with pytest.raises(OutOfSpaceError) as caught:
        check_space(0, free + 1, "a")
    assert caught.value.errno == errno.ENOSPC


def test_file_system_that_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda fd: statvfs(f_blocks=0, f_bfree=0, f_bavail=0))
    check_space(0, 1 << 60, "a")


def test_reserved_space_is_real(fd: int) -> None:
    reserve_space(fd, 100_000, "a")
    status = os.fstat(fd)
    assert status.st_size == 100_000
    assert status.st_blocks * 512 >= 100_000
    assert os.pread(fd, 100_000, 0) == bytes(100_000)


def test_nothing_to_reserve(fd: int) -> None:
    reserve_space(fd, 0, "a")
    assert os.fstat(fd).st_size == 0


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_file_system_that_cannot_reserve(fd: int, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(space, "_fallocate", lambda fd, size: code)
    reserve_space(fd, 100_000, "a")
    assert os.fstat(fd).st_size == 100_000
    with pytest.raises(OutOfSpaceError):
        reserve_space(fd, 1 << 60, "a")


def test_other_errors_are_not_hidden(fd: int) -> None:
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        reserve_space(read_only, 4096, "a")
    os.close(read_only)

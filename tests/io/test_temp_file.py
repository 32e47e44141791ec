"""Temp files: whose they are, and which of them a sweep removes."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastckpt.io import temp_file
from fastckpt.io.temp_file import create_temp, sweep, sweep_matching

RANDOM = "0123456789ab"


@pytest.fixture
def directory_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def orphan(directory: Path, target_name: str, digits: str = RANDOM) -> str:
    name = f".{target_name}.{digits}.fckpt-tmp"
    (directory / name).write_bytes(b"left over")
    return name


def test_orphans_of_the_same_name_are_removed(tmp_path: Path, directory_fd: int) -> None:
    orphan(tmp_path, "a.fckpt")
    orphan(tmp_path, "a.fckpt", "ba9876543210")
    sweep(directory_fd, "a.fckpt")
    assert files(tmp_path) == set()


def test_everything_else_stays(tmp_path: Path, directory_fd: int) -> None:
    keep = {
        orphan(tmp_path, "b.fckpt"),
        orphan(tmp_path, "a.fckpt.old"),
        orphan(tmp_path, "a"),
        orphan(tmp_path, f"a.fckpt.{RANDOM}"),
        orphan(tmp_path, "a.fckpt", "0123456789AB"),
        orphan(tmp_path, "a.fckpt", "0123456789"),
        orphan(tmp_path, "a.fckpt", "not-a-number"),
    }
    for name in ("a.fckpt", ".a.fckpt", ".a.fckpt.fckpt-tmp", f".a.fckpt.{RANDOM}.fckpt-tmp2"):
        (tmp_path / name).touch()
        keep.add(name)
    sweep(directory_fd, "a.fckpt")
    assert files(tmp_path) == keep


def test_what_cannot_be_ours_stays_and_does_not_hang(tmp_path: Path, directory_fd: int) -> None:
    (tmp_path / "precious").write_bytes(b"data")
    (tmp_path / f".a.{RANDOM}.fckpt-tmp").symlink_to("precious")
    os.mkfifo(tmp_path / ".a.000000000000.fckpt-tmp")
    (tmp_path / ".a.111111111111.fckpt-tmp").mkdir()
    before = files(tmp_path)
    sweep(directory_fd, "a")
    assert files(tmp_path) == before


def test_temp_file_of_a_living_process_stays(tmp_path: Path, directory_fd: int) -> None:
    script = (
        "import os, sys; from fastckpt.io.temp_file import create_temp\n"
        "create_temp(os.open(sys.argv[1], os.O_RDONLY), 'a', private=True)\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        sweep(directory_fd, "a")
        assert len(files(tmp_path)) == 1
        writer.kill()
        writer.wait()
        sweep(directory_fd, "a")
        assert files(tmp_path) == set()


def test_sweep_never_raises(tmp_path: Path, directory_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for name in ("listdir", "open", "unlink", "stat", "fstat"):
        orphan(tmp_path, "a")
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            sweep(directory_fd, "a")
    sweep(directory_fd, "a")
    assert files(tmp_path) == set()


def test_file_renamed_to_its_target_between_listing_and_locking_stays(
    tmp_path: Path, directory_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = orphan(tmp_path, "a")
    flock = fcntl.flock

    def commit_first(fd: int, how: int) -> None:
        (tmp_path / name).rename(tmp_path / "a")
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", commit_first)
    sweep(directory_fd, "a")
    assert files(tmp_path) == {"a"}


def test_sweep_between_creating_and_locking(tmp_path: Path, directory_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer notices that its file is gone and takes another."""
    flock = fcntl.flock
    swept: list[str] = []

    def sweep_first(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        swept.extend(files(tmp_path))
        sweep(directory_fd, "a")
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    fd, name = create_temp(directory_fd, "a", private=False)
    assert len(swept) == 1
    assert files(tmp_path) == {name}
    assert name not in swept
    os.close(fd)


def test_file_system_without_locks(tmp_path: Path, directory_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving works; what cannot be proven dead is kept."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    fd, name = create_temp(directory_fd, "a", private=False)
    sweep(directory_fd, "a")
    assert files(tmp_path) == {name}
    os.close(fd)


def test_failed_lock_leaves_no_file(tmp_path: Path, directory_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output"):
        create_temp(directory_fd, "a", private=False)
    assert files(tmp_path) == set()


def test_random_name_that_is_taken(tmp_path: Path, directory_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = orphan(tmp_path, "a", "000000000000")
    numbers = iter([bytes(6), bytes([1] * 6)])
    monkeypatch.setattr(os, "urandom", lambda size: next(numbers))
    fd, name = create_temp(directory_fd, "a", private=False)
    assert name == ".a.010101010101.fckpt-tmp"
    assert (tmp_path / taken).read_bytes() == b"left over"
    os.close(fd)


def test_shortened_names_still_differ(tmp_path: Path, directory_fd: int) -> None:
    first, second = "x" * 250 + "1", "x" * 250 + "2"
    fd, name = create_temp(directory_fd, first, private=False)
    assert len(name) == 255
    os.close(fd)
    sweep(directory_fd, second)
    assert files(tmp_path) == {name}
    sweep(directory_fd, first)
    assert files(tmp_path) == set()


def test_shortened_names_stay_valid_utf8(directory_fd: int, tmp_path: Path) -> None:
    for length in range(110, 128):
        fd, name = create_temp(directory_fd, "x" * (length % 2) + "ü" * length, private=False)
        name.encode()
        assert len(os.fsencode(name)) <= 255
        os.close(fd)


def test_suffix_is_part_of_the_documented_name() -> None:
    assert temp_file.SUFFIX == ".fckpt-tmp"


def test_those_of_every_name_that_matches(tmp_path: Path, directory_fd: int) -> None:
    for name in ("shard-1", "shard-22"):
        orphan(tmp_path, name)
    fd, alive = create_temp(directory_fd, "shard-3", private=False)
    keep = {
        alive,
        orphan(tmp_path, "shard-x"),
        orphan(tmp_path, "a-shard-1"),
        orphan(tmp_path, "shard-4", "not-a-number"),
    }
    sweep_matching(tmp_path, re.compile("shard-[0-9]+"))
    assert files(tmp_path) == keep
    os.close(fd)
    sweep_matching(tmp_path, re.compile("shard-[0-9]+"))
    assert files(tmp_path) == keep - {alive}
    sweep_matching(tmp_path / "missing", re.compile("x"))

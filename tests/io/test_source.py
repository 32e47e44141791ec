"""Source: exact and bounded reads, typed errors for everything that is not a readable file."""

from __future__ import annotations

import errno
import mmap
import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastckpt.errors import CheckpointIOError, DamagedError, NotACheckpointError
from fastckpt.io.source import Source

Unprivileged = Callable[[], AbstractContextManager[None]]
CONTENT = bytes(range(256)) * 40  # 10,240 bytes: two whole pages and a half.


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.fckpt"
    path.write_bytes(CONTENT)
    return path


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_attributes(path: Path) -> None:
    with Source(path) as source:
        assert source.path == str(path)
        assert source.size == len(CONTENT)
        assert not os.get_inheritable(source.fd)


def test_close_is_idempotent_and_complete(path: Path) -> None:
    before = open_fds()
    source = Source(path)
    assert source.direct_fd >= -1
    source.close()
    source.close()
    assert source.fd == -1
    assert open_fds() == before


@given(offset=st.integers(-2, 10_300), size=st.integers(-2, 10_300))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_read_is_exact_or_refused(path: Path, offset: int, size: int) -> None:
    inside = offset >= 0 and size >= 0 and offset + size <= len(CONTENT)
    with Source(path) as source:
        if inside:
            assert source.read(offset, size) == CONTENT[offset : offset + size]
        else:
            with pytest.raises(DamagedError):
                source.read(offset, size)


def test_a_huge_size_is_refused_before_memory_is_taken(path: Path) -> None:
    with Source(path) as source, pytest.raises(DamagedError) as caught:
        source.read(4096, 2**62)
    assert caught.value.offset == 4096
    assert caught.value.path == str(path)
    assert "10240 bytes" in str(caught.value)


def test_short_reads_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 7), offset))
    with Source(path) as source:
        assert source.read(3, 1000) == CONTENT[3:1003]


def test_read_error_is_typed_and_located(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    with Source(path) as source:
        with pytest.raises(CheckpointIOError) as caught:
            source.read(4096, 10)
        assert caught.value.errno == errno.EIO
        assert caught.value.offset == 4096
        assert "dmesg" in str(caught.value)


def test_file_cut_while_open(path: Path) -> None:
    with Source(path) as source:
        assert source.unchanged()
        os.truncate(path, 5000)
        assert not source.unchanged()
        with pytest.raises(DamagedError, match="became shorter") as caught:
            source.read(4096, 4096)
        assert caught.value.offset == 5000
        with pytest.raises(DamagedError, match="became shorter"):
            source.map()


def test_change_and_replacement_while_open(path: Path, tmp_path: Path) -> None:
    with Source(path) as source:
        other = tmp_path / "new"
        other.write_bytes(b"another file")
        other.rename(path)
        assert source.unchanged(), "the old file is still the one that is open"
        assert source.read(0, 256) == CONTENT[:256]
    with Source(path) as source:
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        assert not source.unchanged()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointIOError) as caught:
        Source(tmp_path / "none.fckpt")
    assert caught.value.errno == errno.ENOENT
    assert caught.value.next_step
    assert caught.value.exit_code == 5


def test_permission_denied(public_dir: Path, unprivileged: Unprivileged) -> None:
    path = public_dir / "secret"
    path.write_bytes(CONTENT)
    path.chmod(0)
    with unprivileged(), pytest.raises(CheckpointIOError) as caught:
        Source(path)
    assert caught.value.errno == errno.EACCES


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpointError, match="directory") as caught:
        Source(tmp_path)
    assert f"fastckpt inspect {tmp_path}" in str(caught.value)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(NotACheckpointError, match=r"empty \(0 bytes\)"):
        Source(tmp_path / "empty")


def test_pipe_socket_and_device_neither_hang_nor_leak(tmp_path: Path) -> None:
    before = open_fds()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "pipe", tmp_path / "socket", Path("/dev/null"), Path("/dev/zero")):
            with pytest.raises(NotACheckpointError, match="not a regular file"):
                Source(path)
    assert open_fds() == before


def test_shared_map_is_read_only(path: Path) -> None:
    with Source(path) as source:
        mapped = source.map()
    assert mapped[:] == CONTENT  # It outlives the descriptor.
    with pytest.raises(TypeError):
        mapped[0] = 1


def test_private_map_never_reaches_the_file(path: Path) -> None:
    with Source(path) as source:
        mapped = source.map(private_writable=True)
    mapped[0:3] = b"new"
    assert mapped[:4] == b"new" + CONTENT[3:4]
    assert path.read_bytes() == CONTENT


def test_private_map_larger_than_memory(tmp_path: Path) -> None:
    """Only with MAP_NORESERVE: the default overcommit heuristic refuses a map larger than memory and swap."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
        pytest.skip("this system never overcommits")
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(4 * total)
    with Source(path) as source:
        mapped = source.map(private_writable=True)
        assert len(mapped) == 4 * total
        mapped[2 * total] = 7
        mapped.close()


def test_map_error_is_typed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> mmap.mmap:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(mmap, "mmap", fail)
    with Source(path) as source, pytest.raises(CheckpointIOError) as caught:
        source.map()
    assert caught.value.errno == errno.ENOMEM


def test_direct_descriptor_reads_the_same_file(path: Path, tmp_path: Path) -> None:
    with Source(path) as source:
        os.rename(path, tmp_path / "moved")
        path.write_bytes(b"someone else's")
        direct = source.direct_fd
        assert direct == source.direct_fd
        if direct == -1:
            pytest.skip("no O_DIRECT on this file system")
        with mmap.mmap(-1, 4096) as page:
            assert os.preadv(direct, [page], 4096) == 4096
            assert page[:] == CONTENT[4096:8192]


def test_direct_descriptor_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    before = open_fds()
    with Source(path) as source:
        monkeypatch.setattr(os, "preadv", fail)
        assert source.direct_fd == -1
    assert open_fds() == before


def test_bytes_path(path: Path) -> None:
    with Source(os.fsencode(path)) as source:  # type: ignore[arg-type]
        assert source.path == str(path)


def test_a_file_that_is_written_to_is_refused_with_the_next_step(path: Path) -> None:
    with Source(path) as source:
        source.require_unchanged(next_step="read it again")
        os.utime(path, ns=(0, 0))
        with pytest.raises(DamagedError, match="changed while it was read") as caught:
            source.require_unchanged(next_step="read it again")
    assert (caught.value.path, caught.value.next_step) == (str(path), "read it again")


def test_drop_cache_where_the_system_has_no_such_call(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.posix_fadvise")
    with Source(path) as source:
        source.drop_cache()


def test_drop_cache_reads_the_same_again(path: Path) -> None:
    with Source(path) as source:
        source.drop_cache()
        assert source.read(0, source.size) == CONTENT

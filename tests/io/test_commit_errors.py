"""Commit: an error at any step is typed, and leaves the old file or says that the new one is in place."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from old_file import NEW, OLD, check_untouched, fail_with, files, open_fds

from fastckpt.errors import CheckpointIOError, OutOfSpaceError
from fastckpt.io.commit import Commit, publish_bytes


class Stop(Exception):
    """Any error of the caller's."""


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, SystemExit, MemoryError])
def test_an_exception_in_the_block_passes_and_leaves_nothing(target: Path, error: type[BaseException]) -> None:
    before = open_fds()

    def save() -> None:
        with Commit(target) as sink:
            sink.preallocate(100_000)
            sink.write(0, NEW)
            assert sink.direct_fd >= -1
            raise error

    with pytest.raises(error):
        save()
    check_untouched(target)
    assert open_fds() == before


def test_finish_is_required(target: Path) -> None:
    with pytest.raises(RuntimeError, match="finish"), Commit(target) as sink:
        sink.write(0, NEW)
    check_untouched(target)


@pytest.mark.parametrize("wrong", [1, -1])
def test_wrong_length_is_not_committed(target: Path, wrong: int) -> None:
    sink = Commit(target).__enter__()
    sink.write(0, NEW)
    sink.finish(len(NEW))
    os.ftruncate(sink.fd, len(NEW) + wrong)
    with pytest.raises(CheckpointIOError, match="length"):
        sink.__exit__(None, None, None)
    check_untouched(target)


def test_finish_beyond_what_was_written_is_not_committed(target: Path) -> None:
    sink = Commit(target).__enter__()
    sink.write(0, NEW)
    sink.finish(len(NEW) + 1)
    with pytest.raises(CheckpointIOError, match="length"):
        sink.__exit__(None, None, None)
    check_untouched(target)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_failed_fsync_is_never_tried_again(target: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    calls = 0

    def fail(_: int) -> None:
        nonlocal calls
        calls += 1
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    expected = CheckpointIOError if code == errno.EIO else OutOfSpaceError
    with pytest.raises(expected) as caught:
        publish_bytes(target, NEW)
    assert caught.value.errno == code
    assert calls == 1
    check_untouched(target)


def test_failed_rename(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "rename", fail_with(errno.EBUSY))
    with pytest.raises(CheckpointIOError, match="mount point") as caught:
        publish_bytes(target, NEW)
    assert caught.value.errno == errno.EBUSY
    check_untouched(target)


def test_error_on_close_counts_without_durable(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system reports there what it could not write."""
    duplicates: set[int] = set()
    dup, close = os.dup, os.close

    def note(fd: int) -> int:
        duplicate = dup(fd)
        duplicates.add(duplicate)
        return duplicate

    def fail_on_duplicate(fd: int) -> None:
        close(fd)
        if fd in duplicates:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "dup", note)
    monkeypatch.setattr(os, "close", fail_on_duplicate)
    with pytest.raises(OutOfSpaceError):
        publish_bytes(target, NEW, durable=False)
    check_untouched(target)


def test_failed_directory_fsync_says_that_the_file_is_in_place(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: Iterator[Callable[..., object]] = iter([os.fsync, fail_with(errno.EIO)])
    monkeypatch.setattr(os, "fsync", lambda fd: next(outcomes)(fd))
    with pytest.raises(CheckpointIOError, match="whole and in place"):
        publish_bytes(target, NEW)
    assert target.read_bytes() == NEW
    assert files(target.parent) == [target.name]


def test_file_system_without_directory_fsync(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: Iterator[Callable[..., object]] = iter([os.fsync, fail_with(errno.EINVAL)])
    monkeypatch.setattr(os, "fsync", lambda fd: next(outcomes)(fd))
    publish_bytes(target, NEW)
    assert target.read_bytes() == NEW


def test_untyped_error_from_writing_through_fd_is_translated(target: Path) -> None:
    with pytest.raises(OutOfSpaceError) as caught, Commit(target):
        raise OSError(errno.ENOSPC, "as the native engine raises it")
    assert caught.value.path == str(target)
    check_untouched(target)


def test_errors_about_other_files_pass_as_they_are(target: Path) -> None:
    with pytest.raises(FileNotFoundError), Commit(target):
        Path("/no/such/file").read_bytes()
    with pytest.raises(BrokenPipeError), Commit(target):
        raise BrokenPipeError(errno.EPIPE, "stderr is closed")
    check_untouched(target)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_write_error_is_typed_and_located(target: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(os, "pwrite", fail_with(code))
    with pytest.raises(CheckpointIOError) as caught, Commit(target) as sink:
        sink.write(8192, NEW)
    assert isinstance(caught.value, OutOfSpaceError) == (code == errno.ENOSPC)
    assert caught.value.offset == 8192
    check_untouched(target)


def test_write_that_makes_no_progress(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(CheckpointIOError):
        publish_bytes(target, NEW)
    check_untouched(target)


# --- no room ------------------------------------------------------------------------------


def test_preflight_refuses_before_anything_is_written(target: Path) -> None:
    with pytest.raises(OutOfSpaceError, match=r"1024\.0 PiB needed, .* free"), Commit(target, reserve=1 << 60):
        pytest.fail("the block must not be entered")
    check_untouched(target)


def test_full_file_system(small_fs: Path) -> None:
    target = small_fs / "model.fckpt"
    target.write_bytes(OLD)
    with pytest.raises(OutOfSpaceError), Commit(target) as sink:
        sink.write(0, bytes(2 << 20))
    check_untouched(target)
    with pytest.raises(OutOfSpaceError) as caught, Commit(target) as sink:
        sink.preallocate(2 << 20)
    assert caught.value.errno == errno.ENOSPC
    check_untouched(target)
    publish_bytes(target, NEW)
    assert target.read_bytes() == NEW


def test_orphan_makes_room_before_the_preflight(small_fs: Path) -> None:
    target = small_fs / "model.fckpt"
    (small_fs / ".model.fckpt.0123456789ab.fckpt-tmp").write_bytes(bytes(800 << 10))
    publish_bytes(target, bytes(700 << 10))
    assert files(small_fs) == ["model.fckpt"]


@pytest.mark.parametrize("preallocate", [True, False])
def test_file_size_limit(target: Path, preallocate: bool) -> None:
    """Python ignores SIGXFSZ, so that the limit is an error and not the end of the process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutOfSpaceError, match="ulimit -f") as caught, Commit(target) as sink:
            sink.preallocate(200_000) if preallocate else sink.write(0, bytes(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    check_untouched(target)

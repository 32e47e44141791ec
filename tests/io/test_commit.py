"""Commit: the new file or the old one, whole, with the rights and the name it should have."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from fastckpt.errors import CheckpointIOError, OutOfSpaceError
from fastckpt.io.commit import Commit, fsync_directory, publish_bytes

Unprivileged = Callable[[], AbstractContextManager[None]]
OLD, NEW = b"old" * 1000, b"new" * 2000


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "model.fckpt"
    path.write_bytes(OLD)
    return path


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def check_untouched(target: Path) -> None:
    """The old file is as it was, and nothing lies beside it."""
    assert target.read_bytes() == OLD
    assert files(target.parent) == [target.name]


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def fail_with(code: int) -> Callable[..., int]:
    def fail(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail


# --- success ---------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_replaces_the_target(target: Path, durable: bool) -> None:
    before = open_fds()
    publish_bytes(target, NEW, durable=durable)
    assert target.read_bytes() == NEW
    assert files(target.parent) == [target.name]
    assert open_fds() == before


def test_creates_a_target_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    publish_bytes("here.fckpt", NEW)
    assert (tmp_path / "here.fckpt").read_bytes() == NEW


def test_old_file_is_there_until_the_block_ends(target: Path) -> None:
    with Commit(target) as sink:
        sink.write(0, NEW)
        assert target.read_bytes() == OLD
        sink.finish(len(NEW))
        assert target.read_bytes() == OLD
    assert target.read_bytes() == NEW


def test_reader_of_the_old_file_keeps_it(target: Path) -> None:
    with target.open("rb") as old:
        publish_bytes(target, NEW)
        assert old.read() == OLD


def test_writes_in_any_order_and_any_buffer(target: Path) -> None:
    with Commit(target) as sink:
        sink.write(6, memoryview(b"6789ab").cast("B", (2, 3)))
        sink.write(0, bytearray(b"012345"))
        sink.write(12, b"")
        sink.write(12, memoryview(bytearray(0)))
        sink.finish(12)
    assert target.read_bytes() == b"0123456789ab"


def test_short_writes_are_continued(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:7], offset))
    publish_bytes(target, NEW)
    assert target.read_bytes() == NEW


def test_preallocation_reserves_zeros_and_finish_gives_the_rest_back(target: Path) -> None:
    with Commit(target) as sink:
        sink.preallocate(1 << 20)
        status = os.fstat(sink.fd)
        assert status.st_size == 1 << 20
        assert os.pread(sink.fd, 4096, 4096) == bytes(4096)
        sink.write(0, NEW)
        sink.finish(len(NEW))
    assert target.read_bytes() == NEW
    assert target.stat().st_blocks * 512 < 1 << 20


def test_direct_descriptor_writes_the_same_file(target: Path) -> None:
    import mmap

    with Commit(target) as sink:
        sink.write(0, b"x" * 9000)
        direct = sink.direct_fd
        assert direct == sink.direct_fd
        if direct == -1:
            pytest.skip("no O_DIRECT on this file system")
        with mmap.mmap(-1, 4096) as page:
            page[:] = b"y" * 4096
            assert os.pwrite(direct, page, 4096) == 4096
        sink.finish(9000)
    assert target.read_bytes() == b"x" * 4096 + b"y" * 4096 + b"x" * 808


def test_no_direct_descriptor_without_durable(target: Path) -> None:
    with Commit(target, durable=False) as sink:
        assert sink.direct_fd == -1
        sink.finish(0)


def test_fsyncs_file_then_directory_only_when_durable(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def note(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    publish_bytes(target, NEW, durable=False)
    assert synced == []
    publish_bytes(target, NEW)
    assert len(synced) == 2
    assert synced[0].endswith(".fckpt-tmp")
    assert synced[1] == str(target.parent)


def test_directory_moved_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with Commit(tmp_path / "run" / "model.fckpt") as sink:
        sink.write(0, NEW)
        (tmp_path / "run").rename(tmp_path / "renamed")
        sink.finish(len(NEW))
    assert files(tmp_path / "renamed") == ["model.fckpt"]


# --- mode, owner, links -----------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o027])
def test_new_file_has_the_mode_of_the_umask(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        publish_bytes(tmp_path / "a", NEW)
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o666 & ~mask


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o666, 0o700])
def test_replacement_keeps_the_mode_and_hides_the_content_until_then(target: Path, mode: int) -> None:
    target.chmod(mode)
    with umask(0o022), Commit(target) as sink:
        assert os.fstat(sink.fd).st_mode & 0o7777 == 0o600
        sink.finish(0)
    assert target.stat().st_mode & 0o7777 == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_root_keeps_owner_and_group(target: Path) -> None:
    os.chown(target, 12345, 54321)
    target.chmod(0o640)
    publish_bytes(target, NEW)
    status = target.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (12345, 54321, 0o640)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_rights_of_a_group_do_not_pass_to_another(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target.chmod(0o664)
    os.chown(target, -1, 54321)
    monkeypatch.setattr(os, "fchown", fail_with(errno.EPERM))
    publish_bytes(target, NEW)
    assert target.stat().st_mode & 0o7777 == 0o644


def test_refused_mode_does_not_fail_the_save(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fchmod", fail_with(errno.EPERM))
    publish_bytes(target, NEW)
    assert target.read_bytes() == NEW


def test_symbolic_link_is_followed(tmp_path: Path, target: Path) -> None:
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "latest.fckpt"
    link.symlink_to("../model.fckpt")
    with Commit(link) as sink:
        assert len(files(tmp_path)) == 3, "the temp file lies beside the file, not beside the link"
        sink.write(0, NEW)
        sink.finish(len(NEW))
    assert link.is_symlink()
    assert target.read_bytes() == NEW


def test_dangling_link_creates_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    publish_bytes(tmp_path / "link", NEW)
    assert files(tmp_path) == ["link", "real"]
    assert (tmp_path / "real").read_bytes() == NEW


def test_hard_link_keeps_the_old_content(target: Path, tmp_path: Path) -> None:
    os.link(target, tmp_path / "other")
    publish_bytes(target, NEW)
    assert (tmp_path / "other").read_bytes() == OLD


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "x" * 226, "with space\nand newline", "-rf", "\udcff"])
def test_any_legal_name(tmp_path: Path, name: str) -> None:
    publish_bytes(tmp_path / name, OLD)
    publish_bytes(tmp_path / name, NEW)
    assert files(tmp_path) == [name]


# --- refusals before anything is written -------------------------------------------------


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointIOError) as caught:
        publish_bytes(tmp_path / "no" / "such" / "model.fckpt", NEW)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.next_step == f"mkdir -p {tmp_path / 'no' / 'such'}"


def test_directory_as_target(tmp_path: Path) -> None:
    for path in (tmp_path, f"{tmp_path}/sub/", "/", ""):
        (tmp_path / "sub").mkdir(exist_ok=True)
        with pytest.raises(CheckpointIOError) as caught:
            publish_bytes(path, NEW)
        assert caught.value.errno == errno.EISDIR
    with pytest.raises(CheckpointIOError):
        publish_bytes(f"{tmp_path}/file-that-looks-like-a-directory/", NEW)


def test_parent_is_a_file(target: Path) -> None:
    with pytest.raises(CheckpointIOError) as caught:
        publish_bytes(target / "model.fckpt", NEW)
    assert caught.value.errno == errno.ENOTDIR
    check_untouched(target)


def test_devices_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(CheckpointIOError, match="device, pipe or socket"):
            publish_bytes(path, NEW)
    assert Path("/dev/null").is_char_device()
    assert files(tmp_path) == ["pipe"]


def test_circular_link(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(CheckpointIOError) as caught:
        publish_bytes(tmp_path / "a", NEW)
    assert caught.value.errno == errno.ELOOP


def test_name_too_long(tmp_path: Path) -> None:
    with pytest.raises(CheckpointIOError) as caught:
        publish_bytes(tmp_path / ("x" * 256), NEW)
    assert caught.value.errno == errno.ENAMETOOLONG
    assert files(tmp_path) == []


def test_write_protected_target(public_dir: Path, unprivileged: Unprivileged) -> None:
    """Renaming would replace it all the same; who took the write permission away meant to keep it."""
    public_dir.chmod(0o777)
    target = public_dir / "best.fckpt"
    target.write_bytes(OLD)
    target.chmod(0o444)
    with unprivileged(), pytest.raises(CheckpointIOError) as caught:
        publish_bytes(target, NEW)
    assert caught.value.errno == errno.EACCES
    assert "chmod u+w" in str(caught.value)
    check_untouched(target)


def test_directory_without_write_permission(public_dir: Path, unprivileged: Unprivileged) -> None:
    public_dir.chmod(0o555)
    with unprivileged(), pytest.raises(CheckpointIOError) as caught:
        publish_bytes(public_dir / "model.fckpt", NEW)
    assert caught.value.errno == errno.EACCES


def test_read_only_file_system(small_fs: Path) -> None:
    target = small_fs / "model.fckpt"
    target.write_bytes(OLD)
    subprocess.run(["mount", "-o", "remount,ro", str(small_fs)], check=True)
    with pytest.raises(CheckpointIOError) as caught:
        publish_bytes(target, NEW)
    assert caught.value.errno == errno.EROFS
    check_untouched(target)


# --- errors on the way ------------------------------------------------------------------


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


# --- other processes -----------------------------------------------------------------------


def test_forked_child_leaves_the_parents_file_alone(target: Path) -> None:
    with Commit(target) as sink:
        sink.write(0, NEW)
        child = os.fork()
        if child == 0:
            try:
                with sink_of_parent(sink):
                    sys.exit(0)
            except BaseException:
                os._exit(0)
        os.waitpid(child, 0)
        assert len(files(target.parent)) == 2
        sink.finish(len(NEW))
    assert target.read_bytes() == NEW


@contextmanager
def sink_of_parent(sink: Commit) -> Iterator[None]:
    """What the end of the inherited block does in a child."""
    try:
        yield
    except BaseException as error:
        sink.__exit__(type(error), error, error.__traceback__)
        raise


def test_temp_file_is_locked_while_its_writer_lives(target: Path) -> None:
    with Commit(target) as sink:
        [name] = set(files(target.parent)) - {target.name}
        with (target.parent / name).open("rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        publish_bytes(target, b"a second save meanwhile")
        sink.write(0, NEW)
        sink.finish(len(NEW))
    assert target.read_bytes() == NEW
    assert files(target.parent) == [target.name]


def test_many_writers_of_one_target(target: Path) -> None:
    """Each save succeeds, what stays is one of them, whole, and nothing is left over."""
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            try:
                for _ in range(25):
                    publish_bytes(target, bytes([number]) * 50_000, durable=False)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert statuses == [0] * 4
    assert target.read_bytes() in [bytes([number]) * 50_000 for number in range(4)]
    assert files(target.parent) == [target.name]


def test_fsync_directory(tmp_path: Path) -> None:
    fsync_directory(tmp_path)
    with pytest.raises(CheckpointIOError):
        fsync_directory(tmp_path / "none")

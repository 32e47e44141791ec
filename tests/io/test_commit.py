"""Commit: the new file or the old one, whole, with the rights and the name it should have."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from old_file import NEW, OLD, check_untouched, fail_with, files, open_fds

from fastckpt.errors import CheckpointIOError
from fastckpt.io.commit import Commit, fsync_directory, publish_bytes

Unprivileged = Callable[[], AbstractContextManager[None]]


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


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

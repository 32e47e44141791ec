"""A second file with the same bytes: by sharing them on disk where the file system can, else by copying.

A reflink (FICLONE) shares blocks until one of the files is written to: it takes
no time and no space, and neither file can harm the other. A hard link is the
same file under another name, so whatever writes to one in place changes both:
only a file that is always replaced, never written to, may be linked. Sharing
protects from deleting and overwriting, not from a disk that fails.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from typing import Final, Literal

from fastckpt.errors import CheckpointIOError, DamagedError
from fastckpt.io.commit import Commit, fsync_directory
from fastckpt.io.source import Source, drop_cache
from fastckpt.io.transfer import NOWHERE, Move, Progress, transfer

_FICLONE: Final = 0x40049409
"""ioctl_ficlone(2): _IOW(0x94, 9, int)."""

How = Literal["reflink", "hard link", "copy"]


class _CannotShare(Exception):
    """The file system has no reflinks, or the files lie on two of them."""


def clone(
    source: Source, target: str, *, share: bool, link: bool, threads: int, progress: Progress | None = None
) -> How:
    """Make ``target`` a file with the bytes of ``source``, under its name only when it is whole and on disk.

    A copy is read back from the disk and compared. It keeps the time and the
    permissions of the source.

    Args:
        source: The open file.
        target: Where to put it. A file that is there is replaced.
        share: Try a reflink, and a hard link if ``link`` says so, before copying.
        link: Whether the source is never written to in place.
        threads: Worker threads.
        progress: Called with the bytes copied so far.

    Raises:
        DamagedError: What was read back is not what was copied, or the source changed meanwhile.
        OutOfSpaceError, CheckpointIOError
    """
    if share:
        with contextlib.suppress(_CannotShare), Commit(target) as sink:
            if not reflink(sink.fd, source):
                raise _CannotShare
            _finish(sink, source, leaf_digests(source.fd, source.size, source.path, threads=threads), threads)
            return "reflink"
        if link and hard_link(source, target):
            return "hard link"
    with Commit(target, reserve=source.size) as sink:
        sink.preallocate(source.size)
        moved = transfer(
            [Move(0, 0, source.size)], source=source.fd, sink=sink.fd, threads=threads, leaves=True, progress=progress
        )
        if moved.faults:
            raise _unreadable(source.path, moved.faults[0].offset, moved.faults[0].errno)
        _finish(sink, source, moved.leaves, threads)
    return "copy"


def same_bytes(a: Source, b: Source, *, threads: int) -> bool:
    """Whether two files hold the same, by the digests of their bytes. Raises CheckpointIOError."""
    if a.size != b.size:
        return False
    ours, theirs = (leaf_digests(file.fd, file.size, file.path, threads=threads) for file in (a, b))
    return ours == theirs


def leaf_digests(fd: int, size: int, path: str, *, threads: int) -> memoryview:
    """The leaf digests of a whole file. Raises CheckpointIOError if a part of it cannot be read."""
    moved = transfer([Move(0, 0, size)], source=fd, sink=NOWHERE, threads=threads)
    if moved.faults:
        raise _unreadable(path, moved.faults[0].offset, moved.faults[0].errno)
    return moved.leaves


def _finish(sink: Commit, source: Source, expected: memoryview, threads: int) -> None:
    """Prove that the disk holds what was copied, and let the file have its name."""
    os.fsync(sink.fd)
    drop_cache(sink.fd)
    if leaf_digests(sink.fd, source.size, sink.path, threads=threads) != expected:
        raise DamagedError("what was read back is not what was copied", path=sink.path, next_step="check the disk")
    if not source.unchanged():
        raise DamagedError("the file was written to while it was copied", path=source.path, next_step="copy it again")
    status = os.fstat(source.fd)
    with contextlib.suppress(OSError):  # Some file systems have neither.
        os.fchmod(sink.fd, stat.S_IMODE(status.st_mode) & 0o777)
        os.utime(sink.fd, ns=(status.st_atime_ns, status.st_mtime_ns))
    sink.finish(source.size)


def reflink(fd: int, source: Source) -> bool:
    """Let an empty file share all its bytes with an open one; False where the file system cannot."""
    try:
        fcntl.ioctl(fd, _FICLONE, source.fd)
    except OSError:
        return False
    return True


def hard_link(source: Source, target: str) -> bool:
    """Give the open file, and not what may have its name by now, a second name; False where that cannot be."""
    directory, name = os.path.split(os.path.abspath(target))
    try:
        os.fsync(source.fd)
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # With dst_dir_fd Python calls linkat, which follows the link in /proc; link(2) would not.
            os.link(f"/proc/self/fd/{source.fd}", name, dst_dir_fd=directory_fd, follow_symlinks=True)
        finally:
            os.close(directory_fd)
    except OSError:
        # Another file system, one without links, a file of someone else, or the name is taken: copying says more.
        return False
    fsync_directory(directory)
    return True


def _unreadable(path: str, offset: int, code: int) -> CheckpointIOError:
    reason = os.strerror(code) if code else "the file ends there"
    return CheckpointIOError(f"cannot read: {reason}", errno=code or None, path=path, offset=offset)

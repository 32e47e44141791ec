"""Temporary files beside a target, and the removal of those a crash left behind.

A temp file is named ``.NAME.RANDOM.fckpt-tmp`` after its target and stays
locked (flock) while its writer lives. One that can be locked has no living
writer, so the next save of the same name removes it. A lock goes away with its
process, however that ends; no pid, clock or age has to be trusted. Who writes
files of ever new names into a directory of its own sweeps all of them. Where locks
are known to one machine only (some network file systems), two machines must
not save the same name at once: one of them could lose its temp file and fail.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import zlib
from typing import Final

SUFFIX: Final = ".fckpt-tmp"
_RANDOM_DIGITS: Final = 12
_NAME_MAX: Final = 255
"""Longest file name in bytes, on every common Linux file system."""
_NO_LOCKS: Final = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK}
"""What flock says where the file system has no locks. Nothing is ever swept there."""


def create_temp(directory_fd: int, target_name: str, *, private: bool, mode: int = 0o666) -> tuple[int, str]:
    """Create and lock a temp file for ``target_name``.

    Args:
        directory_fd: The open directory that holds the target.
        target_name: The target's file name, without directories.
        private: Mode 0600 until `keep_ownership` says otherwise.
        mode: The mode else, less the umask (and the directory's default ACL), which the system applies.

    Returns:
        The open file descriptor (read and write), and the temp file's name.

    Raises:
        OSError: It cannot be created.
    """
    prefix = _prefix(target_name)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    while True:
        name = prefix + os.urandom(_RANDOM_DIGITS // 2).hex() + SUFFIX
        fd = -1
        try:
            fd = os.open(name, flags, 0o600 if private else mode, dir_fd=directory_fd)
            _lock(fd)
            # A sweep may have come between creating and locking it.
            if _names(directory_fd, name, fd):
                return fd, name
        except FileExistsError:
            continue
        except BaseException:
            # By name, not by fd: an interrupt may come when the file exists and fd is not assigned yet.
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory_fd)
            if fd >= 0:
                os.close(fd)
            raise
        os.close(fd)


def sweep(directory_fd: int, target_name: str) -> None:
    """Remove temp files of ``target_name`` that no living process holds. Never raises OSError."""
    prefix = _prefix(target_name)
    try:
        names = os.listdir(directory_fd)
    except OSError:
        return
    for name in names:
        if _is_temp(name, prefix):
            with contextlib.suppress(OSError):
                _remove_orphan(directory_fd, name)


def sweep_matching(directory: str | os.PathLike[str], targets: re.Pattern[str]) -> None:
    """Remove temp files of all targets whose whole name matches, if no living process holds them. Never raises OSError.

    For who alone writes these names, at a moment when no other machine does: see above about locks.
    """
    with contextlib.suppress(OSError):
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            rests = {name[1 : -_RANDOM_DIGITS - len(SUFFIX) - 1] for name in os.listdir(directory_fd)}
            for target in sorted(rest for rest in rests if targets.fullmatch(rest)):
                sweep(directory_fd, target)
        finally:
            os.close(directory_fd)


def _remove_orphan(directory_fd: int, name: str) -> None:
    # In a shared directory anything may stand under this name: do not follow a link, do not wait on a pipe.
    fd = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory_fd)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The writer may have renamed it to the target since it was opened here.
            if _names(directory_fd, name, fd):
                os.unlink(name, dir_fd=directory_fd)
    finally:
        os.close(fd)


def keep_ownership(fd: int, replaced: os.stat_result) -> None:
    """Give the new file the owner, group and mode of the one it replaces, as far as we may.

    Never raises OSError: a save must not fail for want of a permission bit.
    """
    mode = stat.S_IMODE(replaced.st_mode) & 0o777
    with contextlib.suppress(OSError):
        created = os.fstat(fd)
        if created.st_uid != replaced.st_uid:
            with contextlib.suppress(OSError):
                os.fchown(fd, replaced.st_uid, -1)
        if created.st_gid != replaced.st_gid:
            try:
                os.fchown(fd, -1, replaced.st_gid)
            except OSError:
                # What the old group was allowed is not for another group: give it what others have.
                mode = mode & ~0o070 | (mode & 0o007) << 3
        os.fchmod(fd, mode)


def _lock(fd: int) -> None:
    try:
        # A sweep holds this lock for an instant at most.
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _names(directory_fd: int, name: str, fd: int) -> bool:
    """Whether the directory entry ``name`` is the file open as ``fd``."""
    try:
        return os.path.samestat(os.stat(name, dir_fd=directory_fd, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def _prefix(target_name: str) -> str:
    room = _NAME_MAX - len("..") - _RANDOM_DIGITS - len(SUFFIX)
    encoded = os.fsencode(target_name)
    if len(encoded) > room:
        # Shortened names must still differ, or a sweep would remove another target's files.
        digest = f"~{zlib.crc32(encoded):08x}"
        target_name = encoded[: room - len(digest)].decode("utf-8", "ignore") + digest
    return f".{target_name}."


def _is_temp(name: str, prefix: str) -> bool:
    if not (name.startswith(prefix) and name.endswith(SUFFIX)):
        return False
    middle = name[len(prefix) : -len(SUFFIX)]
    return len(middle) == _RANDOM_DIGITS and all(digit in "0123456789abcdef" for digit in middle)

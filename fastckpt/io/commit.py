"""The commit protocol: the old file or the new one, whole, whatever happens.

1. Remove temp files of this target whose writer is dead; check free space.
2. Create a temp file in the directory of the target, and lock it.
3. Write everything into it.
4. Check its length; fsync it.
5. **Rename it to the target: the commit point.**
6. fsync the directory.

A crash or power cut before 5 leaves the old file as it was, and a temp file
that the next save removes. After 5 a crash of the process leaves the new file.
A power cut between 5 and the end of 6 leaves either the old or the new file,
whole; after 6, the new one. Without ``durable``, steps 4 and 6 do not fsync:
a crash of the process is survived, a power cut may not be.

An error in any step removes the temp file. A failed fsync is never tried
again: the kernel may have dropped the pages it could not write, and a second
fsync would then report success.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from typing import Final, TypeGuard

from fastckpt import _core
from fastckpt.errors import CheckpointIOError, FastckptError
from fastckpt.io.direct import open_direct
from fastckpt.io.os_errors import exists, file_path, translate_os_error, typed_os_errors
from fastckpt.io.source import identity_of
from fastckpt.io.space import check_space, reserve_space
from fastckpt.io.tally import Tally
from fastckpt.io.temp_file import create_temp, keep_ownership, sweep
from fastckpt.io.transfer import MEMORY, Move, transfer

__all__ = ["Commit", "fsync_directory", "make_directory", "publish_bytes", "write_all"]

_DIRECTORY_SYNC_UNSUPPORTED: Final = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
"""What fsync on a directory says where the file system has no such thing."""


_WRITE_BEHIND: Final = 8 * 1024 * 1024
"""Bytes written through the page cache before the disk is set to work on them."""


class Commit:
    """A new file that takes the place of ``path`` when the block ends without an error.

    Args:
        path: The target. A symbolic link is followed: the file it names is replaced.
        durable: fsync before and after the rename, so that a power cut loses nothing.
        reserve: Bytes that will be needed; checked against the free space first.
        mode: Who may read and write it, less the umask, where it replaces no file: that has its own.
        tally: Is told of all that is written. What is written through ``fd`` itself must be added to it.

    Attributes:
        path: The target as given.
        fd: The temp file, open for reading and writing.
        tally: As given.

    Raises (on entering the block, in it, or on leaving it):
        OutOfSpaceError: The file system, a quota or a size limit is too small.
        CheckpointIOError: The system refused something else. An OSError from
            writing through ``fd`` that leaves the block is translated as well.
        RuntimeError: The block ended without a call of `finish`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durable: bool = True,
        reserve: int | None = None,
        mode: int = 0o666,
        tally: Tally | None = None,
    ) -> None:
        self.path = file_path(path)
        self.tally = tally
        self.fd = -1
        self._durable = durable
        self._reserve = reserve
        self._mode = mode
        self._direct_fd: int | None = None
        self._directory_fd = -1
        self._target_name = ""
        self._temp_name: str | None = None
        self._replaced: os.stat_result | None = None  # What stood at the target when we began.
        self._begun = 0  # Up to here `write` has told the system to begin.
        self._size: int | None = None
        self._owner = 0  # The process that began.

    def __enter__(self) -> Commit:
        self._owner = os.getpid()
        try:
            self._begin()
        except BaseException as error:
            self._discard()
            if isinstance(error, OSError) and not isinstance(error, FastckptError):
                raise translate_os_error(error, self.path, doing="save here") from error
            raise
        return self

    def __exit__(self, kind: object, value: BaseException | None, *_: object) -> None:
        if os.getpid() != self._owner:
            self._close()  # A forked child leaves the block: the file is the parent's.
            return
        try:
            if value is None:
                self._publish()
            elif _is_untyped_write_error(value):
                raise translate_os_error(value, self.path, doing="write the file") from value
        finally:
            self._discard()

    @property
    def direct_fd(self) -> int:
        """The temp file opened with O_DIRECT; -1 where that does not work, or without ``durable``."""
        if self._direct_fd is None:
            self._direct_fd = open_direct(self.fd, os.O_RDWR) if self._durable else -1
        return self._direct_fd

    def preallocate(self, size: int) -> None:
        """Reserve ``size`` bytes on disk. The file has that length then; unwritten bytes are zero.

        Raises:
            OutOfSpaceError: They are not to be had.
            CheckpointIOError: The system refused for another reason.
        """
        with typed_os_errors(self.path, doing=f"reserve {size} bytes"):
            reserve_space(self.fd, size, self.path)

    def preallocate_if_possible(self, size: int) -> None:
        """The same, where less may be written in the end: if there is no room for all, nothing is reserved.

        Direct writes that make a file longer would wait for each other.
        """
        try:
            reserve_space(self.fd, size, self.path)
        except OSError:
            # A file system may have reserved a part.
            with typed_os_errors(self.path, doing="set the length of the file"):
                os.ftruncate(self.fd, 0)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data`` at ``offset``, through the page cache.

        Raises:
            OutOfSpaceError: There is no room for it.
            CheckpointIOError: The system refused for another reason.
        """
        if self.tally is not None:
            self.tally.add(offset, data)
        offset = write_all(self.fd, offset, data, path=self.path)
        if self._durable and offset - self._begun >= _WRITE_BEHIND:
            self._begin_writing(offset)

    def _begin_writing(self, end: int) -> None:
        """Let the system begin to bring to the disk what `write` has put there up to ``end``, and not wait for it.

        All of it would be left for fsync otherwise: the disk would idle while the rest is made.
        """
        if hasattr(os, "posix_fadvise"):
            # Linux begins to write what is dirty; what it would drop is what is clean, and that nothing is here.
            with contextlib.suppress(OSError):
                os.posix_fadvise(self.fd, self._begun, end - self._begun, os.POSIX_FADV_DONTNEED)
        self._begun = end

    def write_blocks(self, blocks: Sequence[tuple[int, bytes]], threads: int) -> None:
        """Write blocks of whole 4 KiB, each at its offset, while other threads may be writing through `direct_fd`.

        Where that is open they go the same way: the file system lets a write through the page cache wait for all
        direct ones that are under way, and those that follow for it.

        Raises:
            OSError: The system refused.
        """
        if self.direct_fd < 0:
            for offset, block in blocks:
                self.write(offset, block)
            return
        moves = [Move(_core.address(block), offset, len(block)) for offset, block in blocks]
        transfer(moves, source=MEMORY, sink=self.fd, sink_direct=self.direct_fd, threads=threads, leaves=False)
        if self.tally is not None:
            for offset, block in blocks:
                self.tally.add(offset, block)

    def finish(self, size: int) -> None:
        """State the final length of the file in bytes; what was reserved beyond it is given back.

        Raises:
            CheckpointIOError: The system refused.
        """
        with typed_os_errors(self.path, size, doing="set the length of the file"):
            if os.fstat(self.fd).st_size > size:
                os.ftruncate(self.fd, size)
        self._size = size

    def _begin(self) -> None:
        directory, self._target_name = os.path.split(os.path.realpath(self.path))
        try:
            # All that follows names the directory by this descriptor, so it may even be renamed meanwhile.
            self._directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise translate_os_error(
                error, self.path, doing=f"open the directory {directory}", next_step=f"mkdir -p {directory}"
            ) from None
        if os.statvfs(self._directory_fd).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        self._replaced = self._check_target()
        sweep(self._directory_fd, self._target_name)
        if self._reserve is not None:
            check_space(self._directory_fd, self._reserve, self.path)
        self.fd, self._temp_name = create_temp(
            self._directory_fd, self._target_name, private=self._replaced is not None, mode=self._mode
        )

    def _check_target(self) -> os.stat_result | None:
        """What stands at the target, if anything does and may be replaced."""
        if self.path.endswith("/") or not self._target_name:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        try:
            found = os.stat(self._target_name, dir_fd=self._directory_fd)
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointIOError(
                "cannot save here: this is a device, pipe or socket",
                errno=errno.EINVAL,
                path=self.path,
                next_step="name a regular file",
            )
        # A rename would replace a write-protected file as well; whoever protected it expects otherwise.
        if not os.access(self._target_name, os.W_OK, dir_fd=self._directory_fd, effective_ids=True):
            raise CheckpointIOError(
                "cannot save here: there is a file that you may not write to",
                errno=errno.EACCES,
                path=self.path,
                next_step=f"chmod u+w {self.path}, or save under another name",
            )
        return found

    def _publish(self) -> None:
        """Steps 4 to 6. Until the rename returns, an error leaves the old file in place."""
        assert self._temp_name is not None
        if self._size is None:
            raise RuntimeError("a commit ended without a call of finish(size)")
        with typed_os_errors(self.path, doing="complete the new file"):
            if self._replaced is not None:
                keep_ownership(self.fd, self._replaced)
            actual = os.fstat(self.fd).st_size
            if actual != self._size:
                raise CheckpointIOError(
                    "the new file does not have the length that was written; the old one stays",
                    path=self.path,
                    expected=f"{self._size} bytes",
                    actual=f"{actual} bytes",
                )
            if self._durable:
                os.fsync(self.fd)
            else:
                # Closing any descriptor makes a network file system report what it could not write.
                os.close(os.dup(self.fd))
            identity = identity_of(os.fstat(self.fd))
            os.rename(self._temp_name, self._target_name, src_dir_fd=self._directory_fd, dst_dir_fd=self._directory_fd)
            self._temp_name = None
        if self.tally is not None:
            self.tally.finish(identity)
        if self._durable:
            with typed_os_errors(self.path, doing="make the new file safe from a power cut (it is whole and in place)"):
                _fsync_directory(self._directory_fd)

    def _discard(self) -> None:
        """Remove the temp file unless it became the target, and close everything."""
        name, self._temp_name = self._temp_name, None
        if name is not None:
            # If this fails, the next save sweeps it.
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._directory_fd)
        self._close()

    def _close(self) -> None:
        descriptors = (self.fd, self._direct_fd, self._directory_fd)
        self.fd = self._direct_fd = self._directory_fd = -1
        for fd in descriptors:
            if fd is not None and fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)


def write_all(fd: int, offset: int, data: bytes | bytearray | memoryview, *, path: str) -> int:
    """Write all of ``data`` at ``offset`` of an open file; where it ends. Raises OutOfSpaceError, CheckpointIOError."""
    rest = memoryview(data)
    if rest.nbytes == 0:
        return offset
    rest = rest.cast("B")
    while rest.nbytes:
        try:
            count = os.pwrite(fd, rest, offset)
            if count == 0:
                raise OSError(errno.EIO, "nothing was written")
        except OSError as error:
            raise translate_os_error(error, path, offset, doing="write") from error
        offset += count
        rest = rest[count:]
    return offset


def publish_bytes(path: str | os.PathLike[str], data: bytes, *, durable: bool = True) -> None:
    """Replace a small file by ``data`` in the same safe way. Raises what `Commit` raises."""
    with Commit(path, durable=durable, reserve=len(data)) as sink:
        sink.write(0, data)
        sink.finish(len(data))


def make_directory(path: str, *, durable: bool = True) -> None:
    """Make a directory that is missing, and those above it, safe from a power cut.

    Raises:
        CheckpointIOError: The system refused.
    """
    missing = []
    above = os.path.abspath(file_path(path))
    while not exists(above):
        missing.append(above)
        above = os.path.dirname(above)
    with typed_os_errors(path, doing="make the directory"):
        os.makedirs(file_path(path), exist_ok=True)  # Other ranks make it, too.
    for each in missing if durable else ():
        fsync_directory(os.path.dirname(each))


def fsync_directory(path: str | os.PathLike[str]) -> None:
    """Make what was created, renamed or removed in a directory safe from a power cut.

    Raises:
        CheckpointIOError: The directory cannot be opened, or the fsync failed.
    """
    with typed_os_errors(path, doing="sync the directory"):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _fsync_directory(fd)
        finally:
            os.close(fd)


def _fsync_directory(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _DIRECTORY_SYNC_UNSUPPORTED:
            raise


def _is_untyped_write_error(error: BaseException) -> TypeGuard[OSError]:
    """Whether a body's error is the system's word on a write through the descriptor.

    Such an error has a number and no file name; one about another file has its name.
    """
    return (
        isinstance(error, OSError)
        and not isinstance(error, FastckptError | ConnectionError)
        and error.errno is not None
        and error.filename is None
    )

"""A file opened for reading: exact reads, bounded before memory is taken."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn, TypeAlias

from fastckpt.errors import CheckpointIOError, DamagedError, FastckptError, NotACheckpointError
from fastckpt.io.direct import open_direct
from fastckpt.io.file_object import Readables, name_of, spool
from fastckpt.io.os_errors import translate_os_error, typed_os_errors
from fastckpt.io.slots import SlotReads, SlotRequest
from fastckpt.io.transfer import Move, Moved, Progress, transfer
from fastckpt.io.unpacked import Unpacked, pack, unpacked_folder
from fastckpt.layout.blocks import Extent
from fastckpt.text import quoted

_MAP_NORESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
"""Maps a file larger than memory writable: pages are only paid for when written.
The mmap module names it from Python 3.11 on."""

BECAME_SHORTER: Final = "the file became shorter while it was open"
"""What is said of bytes that were there when a file was opened."""

Openable: TypeAlias = "Readables | Source"
"""A path or binary file object, or the open file itself: whoever looks at a file twice opens it once."""

Identity = tuple[int, int, int, int]
"""Device, inode, size in bytes and time of the last write in nanoseconds."""


class Source:
    """A regular file, or what a binary file object gives, open for reading; a context manager.

    The folder of an unpacked ``.pt`` is read as the archive that it was.

    Args:
        path: A path, or a binary file object.
        may_be_empty: Take a file of 0 bytes, too, which is no checkpoint.

    Attributes:
        path: The path as given; `FILE_OBJECT` of a file object.
        fd: The file descriptor, -1 once closed.
        size: Length in bytes when it was opened. Every read is bounded by it.
        warm: What `fastckpt.io.residency.is_warm` found when it was first asked.
        unread_head: Why the system did not let `head` be read, if so.
        unpacked: What the folder is that is read as an archive; None of a file.
        far: Whether what is read comes from another computer, and each read is a request.
        attempts: How often bytes are read, in all, that are not as a digest says: they may have changed on their way.
        remembered: What was found out about the file, for those who ask again while it is open. Not in a dict with weak
            keys: a Ctrl-C that Python hears in a callback of such a dict is lost.

    Raises:
        NotACheckpointError: It is empty (unless that may be), a directory, a pipe or a device.
        CheckpointIOError: It is missing or may not be read; ``errno`` says which.
    """

    far = False
    attempts = 1

    def __init__(self, path: Readables, *, may_be_empty: bool = False) -> None:
        self.fd = -1
        self._may_be_empty = may_be_empty
        self.path = name_of(path)
        self.unread_head: CheckpointIOError | None = None
        self._direct_fd: int | None = None
        self._file_fd = -1
        self.warm: bool | None = None
        self.remembered: dict[str, Any] = {}
        self.unpacked: Unpacked | None = None
        try:
            # Without O_NONBLOCK, opening a pipe waits for a writer.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            self.fd = os.open(self.path, flags) if isinstance(path, str | bytes | os.PathLike) else spool(path)
            self._opened = os.fstat(self.fd)
        except OSError as error:
            self.close()
            if error.errno == errno.ENXIO:  # A socket.
                raise NotACheckpointError("this is not a regular file", path=self.path) from None
            doing = None if error.errno == errno.ENOENT else "open the file"
            raise translate_os_error(error, self.path, doing=doing) from error
        self.size = self._opened.st_size
        try:
            self._check_kind()
        except FastckptError:
            self.close()
            raise

    def _check_kind(self) -> None:
        if stat.S_ISDIR(self._opened.st_mode):
            folder = unpacked_folder(self.path)
            if folder is None:
                raise NotACheckpointError(
                    "this is a directory, not a checkpoint file",
                    path=self.path,
                    next_step=f"name a file in it; fastckpt inspect {quoted(self.path)} shows what there is",
                )
            self.unpacked = pack(folder)
            self.read_instead(self.unpacked.fd)
            return
        if not stat.S_ISREG(self._opened.st_mode):
            raise NotACheckpointError("this is not a regular file", path=self.path)
        if self.size == 0 and not self._may_be_empty:
            raise NotACheckpointError(
                "the file is empty (0 bytes): the save never began to write",
                path=self.path,
                next_step="use an older checkpoint, or another copy of this one",
            )

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Files of Python's own do the same: dropped is closed, with a warning for those who look for it.
        if self.fd >= 0:
            warnings.warn(f"unclosed checkpoint file {self.path!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def close(self) -> None:
        """Close the descriptors; maps made from them stay valid. Closing twice does nothing."""
        fds = (self.fd, self._direct_fd, self._file_fd)
        self.fd = self._direct_fd = self._file_fd = -1
        for fd in fds:
            if fd is not None and fd >= 0:
                with contextlib.suppress(OSError):  # It was only read: nothing is lost, and it is closed all the same.
                    os.close(fd)

    def read_instead(self, fd: int) -> None:
        """Read another form of the file from now on; ``fd`` is closed with it. What the file is called, and whether
        somebody changes it, is still asked of the file itself.
        """
        if self._direct_fd is not None and self._direct_fd >= 0:
            os.close(self._direct_fd)
        self._file_fd, self.fd, self._direct_fd, self.warm = self.fd, fd, None, None
        self.size = os.fstat(fd).st_size

    @property
    def has_other_form(self) -> bool:
        """Whether another form of it is read in its place."""
        return self._file_fd >= 0

    @property
    def file_size(self) -> int:
        """Bytes of the file itself; of a folder, of all files in it."""
        return self._opened.st_size if self.unpacked is None else self.unpacked.size

    @property
    def direct_fd(self) -> int:
        """The file opened with O_DIRECT (reads aligned to 4096 bytes), or -1 where that does not work."""
        if self._direct_fd is None:
            self._direct_fd = open_direct(self.fd, os.O_RDONLY)
        return self._direct_fd

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be read any more."""
        return self.fd < 0

    @property
    def origin(self) -> str | os.PathLike[str]:
        """What opens it again."""
        return self.path

    def beside(self, suffix: str) -> str | os.PathLike[str]:
        """The path of what is called as the file is, with more at the end."""
        return self.path + suffix

    def transfer(
        self,
        moves: Iterable[Move],
        *,
        sink: int,
        threads: int,
        leaves: bool = True,
        crcs: bool = False,
        sink_direct: int = -1,
        past_the_cache: bool = True,
        progress: Progress | None = None,
    ) -> Moved:
        """Carry out moves out of the file: see `fastckpt.io.transfer.transfer`.

        Args:
            past_the_cache: Whether what the page cache does not hold is read without it.
        """
        return transfer(
            moves,
            source=self.fd,
            source_direct=self.direct_fd if past_the_cache else -1,
            sink=sink,
            sink_direct=sink_direct,
            threads=threads,
            leaves=leaves,
            crcs=crcs,
            progress=progress,
        )

    @contextmanager
    def ahead(self, extents: Iterable[Extent], *, threads: int) -> Iterator[None]:
        """Inside of this ``with`` threads `read` these extents, once each and about in this order.

        A file is read ahead by the system.
        """
        yield

    def keep_passed_over(self) -> None:
        """From now on keep small parts that are read together with others, which will be asked for later.

        What of a file is read, the system keeps.
        """

    def bring_near(self) -> None:
        """All of it will be read, in many small steps of which each says where the next one is. A file is near."""

    def abandon_reads(self) -> None:
        """Let reads that other threads wait for end with an error. Those of a file end by themselves."""

    def fill_slots(self, wanted: SlotRequest, *, threads: int, past_the_cache: bool) -> SlotReads:
        """Begin to read into slots, turn after turn."""
        return wanted.from_file(self.fd, self.direct_fd if past_the_cache else -1, threads=threads)

    def read(self, offset: int, size: int, *, what: str = "") -> bytes:
        """Exactly ``size`` bytes from ``offset``; ``what`` names them in messages.

        Raises:
            DamagedError: They do not lie inside the file, or it became shorter.
            CheckpointIOError: The system could not read them.
        """
        self._check_bounds(offset, size, what)
        data = self._read_some(offset, size)
        if len(data) == size:
            return data
        # A short read is legal (one stops at 2 GiB): take the rest bit by bit.
        parts, done = [data], len(data)
        while done < size:
            parts.append(self._read_some(offset + done, size - done))
            done += len(parts[-1])
        return b"".join(parts)

    def head(self, size: int) -> bytes:
        """The first bytes, at most ``size`` of them; none where the device cannot read them.

        Then other parts of the file have to say what it is; if they do not, ``unread_head`` is the error to raise.
        """
        try:
            return self.read(0, min(self.size, size))
        except CheckpointIOError as error:
            self.unread_head = error
            return b""

    def _read_some(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self.fd, size, offset)
        except OSError as error:
            raise translate_os_error(error, self.path, offset, doing="read") from error
        if not data and size:
            raise self._cut_short(offset)
        return data

    def _check_bounds(self, offset: int, size: int, what: str = "") -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise DamagedError(
                f"the {what or 'wanted part'} ({size} bytes) reaches beyond the end of the file",
                path=self.path,
                offset=offset,
                expected=f"{offset + size} bytes",
                actual=f"{self.size} bytes",
            )

    def _cut_short(self, end: int) -> DamagedError:
        return DamagedError(
            BECAME_SHORTER,
            path=self.path,
            offset=end,
            expected=f"{self.size} bytes",
            actual=f"{end} bytes",
        )

    def map(self, *, private_writable: bool = False) -> mmap.mmap:
        """The whole file as memory; it stays mapped until the last reference is gone.

        Args:
            private_writable: Let the memory be written to. What is written
                stays in this process; the file never changes.

        Raises:
            DamagedError: The file became shorter since it was opened.
            CheckpointIOError: The system cannot map it.
        """
        if private_writable:
            flags, protection = mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        else:
            flags, protection = mmap.MAP_SHARED, mmap.PROT_READ
        try:
            return mmap.mmap(self.fd, self.size, flags=flags, prot=protection)
        except OSError as error:
            raise translate_os_error(error, self.path, doing="map the file into memory") from error
        except ValueError as error:
            # The module's own check: the file is shorter than the map would be.
            raise self._cut_short(os.fstat(self.fd).st_size) from error

    def drop_cache(self) -> None:
        """Let the system forget what it holds of the file: what is read next comes from the disk."""
        drop_cache(self.fd)

    @property
    def identity(self) -> Identity:
        """What another file under the same name, and the same one after a write, has otherwise."""
        return identity_of(self._opened)

    def require_in_place(self, *, next_step: str) -> None:
        """Raise DamagedError unless the path still names this file, as it was: before what has the name is deleted."""
        with typed_os_errors(self.path, doing="look at the file"):
            now = os.stat(self.path)
        if identity_of(now) != self.identity:
            raise DamagedError("another file has taken its place", path=self.path, next_step=next_step)

    def raise_fault(self, offset: int, errno: int) -> NoReturn:
        """Raise what a byte that a transfer could not read means; ``errno`` 0 is the end of the file.

        Raises:
            CheckpointIOError: The system could not read it.
            DamagedError: It is not there any more.
        """
        if errno:
            raise CheckpointIOError(f"cannot read: {os.strerror(errno)}", errno=errno, path=self.path, offset=offset)
        raise DamagedError("the file became shorter while it was read", path=self.path, offset=offset)

    def errno_of_map(self, offset: int, size: int) -> int:
        """Why a map of the file does not have these bytes: what plain reading says of them, ``errno`` 0 is the end."""
        try:
            done = 0
            while done < size:  # A read in front of a bad sector is a short one, and not the end of the file.
                count = len(os.pread(self.fd, size - done, offset + done))
                if not count:
                    return 0
                done += count
            return errno.EFAULT
        except OSError as error:
            return error.errno or errno.EIO

    def require_unchanged(self, *, next_step: str) -> None:
        """Raise DamagedError, which advises ``next_step``, unless the file is `unchanged`."""
        if not self.unchanged():
            raise DamagedError("the file changed while it was read", path=self.path, next_step=next_step)

    def unchanged(self) -> bool:
        """Whether nothing wrote to the file or cut it since it was opened.

        A file that was *replaced* (by a rename, as fastckpt saves) counts as
        unchanged: this descriptor still reads the old one, whole.

        Raises:
            CheckpointIOError: The system cannot say.
        """
        with typed_os_errors(self.path, doing="look at the file"):
            now = os.fstat(self._file_fd if self.has_other_form else self.fd)
        return identity_of(now) == self.identity


def identity_of(status: os.stat_result) -> Identity:
    """See `Source.identity`."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def drop_cache(fd: int) -> None:
    """Let the system forget what it holds of an open file, once that is on the disk.

    What is still in the page cache proves nothing about the disk.
    """
    if hasattr(os, "posix_fadvise"):  # macOS has no such call
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def read_small(path: str, *, limit: int) -> bytes:
    """All bytes of a small file, which may be empty.

    Args:
        path: The file.
        limit: The most bytes that such a file has.

    Raises:
        DamagedError: It is larger; no more of it was read.
        CheckpointIOError: The system could not read it.
    """
    with typed_os_errors(path, doing="read the file"), open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise DamagedError(f"it is larger than {limit} bytes, which no such file is", path=path)
    return data

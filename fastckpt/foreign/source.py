"""The file being read: bytes at a place, or a typed error."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType

from fastckpt.errors import CheckpointIOError, DamagedError, NotACheckpointError


class Source:
    """A regular file, open for reading.

    Attributes:
        path: As given.
        size: Size in bytes when it was opened.
        fd: The file descriptor.
    """

    def __init__(self, path: str) -> None:
        """Open it.

        Raises:
            CheckpointIOError: The system refused; ``errno`` says why.
            NotACheckpointError: A directory or another thing that is not a regular file.
        """
        self.path = path
        try:
            # Looked at before opening: opening a named pipe would wait for a writer.
            mode = Path(path).stat().st_mode
            if not stat.S_ISREG(mode):
                raise _not_regular(path, mode)
            self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise io_error(error, path) from error
        self.size = os.fstat(self.fd).st_size

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)

    def read(self, offset: int, size: int, *, what: str) -> bytes:
        """``size`` bytes at ``offset``; ``what`` names them in messages.

        Raises:
            DamagedError: The file ends before.
            CheckpointIOError: The system could not read.
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            raise DamagedError(
                f"{what}: the file ends before its last byte",
                offset=offset,
                expected=f"{size} bytes",
                actual=max(0, self.size - offset),
            )
        pieces = []
        while size:
            try:
                piece = os.pread(self.fd, size, offset)
            except OSError as error:
                raise io_error(error, self.path, offset=offset) from error
            if not piece:
                raise DamagedError(f"{what}: the file became shorter while it was read", offset=offset)
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def io_error(error: OSError, path: str, *, offset: int | None = None) -> CheckpointIOError:
    """The typed error for what the system said while reading."""
    return CheckpointIOError(f"cannot read: {error.strerror or error}", errno=error.errno, path=path, offset=offset)


def _not_regular(path: str, mode: int) -> NotACheckpointError:
    if not stat.S_ISDIR(mode):
        return NotACheckpointError("not a regular file", path=path)
    return NotACheckpointError("this is a directory", path=path, next_step="name a file in it")

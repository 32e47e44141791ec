"""The first bytes of an open file, looked at as if they were all of it."""

from __future__ import annotations

import os

from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.source import Source


class Beginning(Source):
    """The first ``size`` bytes of an open file. It opens nothing and closes nothing.

    Args:
        fd: The open file, which has as many bytes.
        path: What that is called in errors.
        size: See above.
        direct_fd: The file opened with O_DIRECT, or -1.
    """

    def __init__(self, fd: int, path: str, size: int, *, direct_fd: int = -1) -> None:
        self.path, self.fd, self.size = path, fd, size
        self.unread_head, self.unpacked, self.warm = None, None, None
        self.remembered = {}
        self._direct_fd, self._file_fd = direct_fd, -1
        with typed_os_errors(path, doing="look at the file"):
            self._opened = os.fstat(fd)

    def close(self) -> None:
        """Nothing is closed: the file belongs to who opened it."""

    def __del__(self) -> None:
        """Nothing is left open."""

    @property
    def file_size(self) -> int:
        """The bytes that are looked at."""
        return self.size

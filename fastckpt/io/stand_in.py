"""Another file that is read in place of an open one, under its name."""

from __future__ import annotations

import os

from fastckpt.io.source import Source


class StandIn(Source):
    """A file without a name that is read as if it was an open one; it closes its own descriptors alone.

    What the file is called and whether somebody changes it is still asked of the open one.

    Args:
        base: The open file. It must stay open.
        fd: What is read. It is closed with this.
    """

    def __init__(self, base: Source, fd: int) -> None:
        self.base = base
        self.path, self.fd, self.size = base.path, fd, os.fstat(fd).st_size
        self.unread_head, self.unpacked, self.warm = None, None, None
        self.remembered = {}
        self._opened = base._opened
        self._direct_fd: int | None = None
        self._file_fd = -1
        self._own_size = self.size

    @property
    def file_size(self) -> int:
        """Bytes of what is read in its place."""
        return self._own_size

    def unchanged(self) -> bool:
        """Whether nothing wrote to the file that it stands for."""
        return self.base.unchanged()

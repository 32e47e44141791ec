"""A part of an open file, looked at as if it was a file of its own."""

from __future__ import annotations

from fastckpt.errors import CheckpointIOError
from fastckpt.io.source import Source


class Part(Source):
    """A part of an open file: what counts its bytes from its own beginning is read through one of these.

    It can begin before the file does: then the first bytes of what it was were taken away. It opens nothing and closes
    nothing.

    Attributes:
        base: The open file.
        begin: Where in it the first byte of the part stands.
    """

    def __init__(self, base: Source, begin: int, size: int) -> None:
        self.path, self.fd, self.size = base.path, base.fd, size
        self.base, self.begin = base, begin
        self.remembered = {}

    def close(self) -> None:
        """Nothing is closed: the file belongs to the source that opened it."""

    def __del__(self) -> None:
        """Nothing is left open."""

    def read(self, offset: int, size: int, *, what: str = "") -> bytes:
        """As `Source.read`; bytes that were taken away cannot be read."""
        self._check_bounds(offset, size, what)
        if offset + self.begin < 0:
            raise CheckpointIOError(f"the {what or 'wanted part'} is not there any more", path=self.path, offset=0)
        return self.base.read(offset + self.begin, size, what=what)

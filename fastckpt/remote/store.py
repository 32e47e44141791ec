"""What is asked of a store: the few calls that everything remote is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

RANGE: Final = 8 * 2**20
"""Bytes of a request: enough that its round trip counts little, little enough to be fetched again."""


@dataclass(frozen=True, slots=True)
class Version:
    """An object as it was at one moment.

    Attributes:
        size: In bytes.
        etag: What another content under the same key has otherwise; None where the store tells nothing of the kind.
        modified: When it was last written, in seconds since 1970; 0 where nobody says.
    """

    size: int
    etag: str | None = None
    modified: float = 0.0

    def may_be(self, other: Version) -> bool:
        """Whether both can be the same content. Of times a listing says something else than an answer does."""
        return self.size == other.size and (None in (self.etag, other.etag) or self.etag == other.etag)


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a listing: its key, from the root of the store on, and what it was."""

    key: str
    version: Version


class Parts(Protocol):
    """An object on its way to a store. Nobody sees it before it is complete; what it replaces stays so long."""

    def send(self, part: memoryview) -> None:
        """Take the next bytes: a part of full size, unless it is the last one. Waits while enough parts are under way.

        They must stay as they are while anything refers to ``part``.
        """

    def complete(self) -> None:
        """All was sent: put the object in its place, in one step."""

    def abort(self) -> None:
        """End the upload, so that nothing of it stays, as far as the store can be reached."""


class Store(Protocol):
    """A bucket or a web server. Every call can be made from any thread, hears Ctrl-C but for `get`, and tries again
    where that may help. Errors are those of `fastckpt.errors`, with ``path`` the URL without secrets:

    * CheckpointNotFoundError: no such object, bucket or server;
    * CheckpointIOError: not allowed (``errno`` EACCES), or the last of several failures;
    * DamagedError: the object is not that version any more, or another length came than was asked for.

    Attributes:
        conditional: Whether `get` itself looks at the version. Where it does not, whoever read compares it afterwards.
    """

    conditional: bool

    def head(self, key: str) -> Version:
        """What an object is now."""

    def tail(self, key: str, size: int) -> tuple[Version, memoryview]:
        """What an object is now, and its last bytes, at most ``size``; in one request where the store can do that."""

    def get(self, key: str, start: int, stop: int, version: Version) -> memoryview:
        """The bytes ``[start, stop)`` of that version, and of no other.

        This one call hears no Ctrl-C: make it on a thread that nobody has to wait for.
        """

    def begin(self, key: str, *, part_size: int, workers: int) -> Parts:
        """Begin to write an object, in parts of so many bytes, at most so many of them under way at a time."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, one after the other in this order; one that is not there counts as deleted."""

    def list_here(self, prefix: str) -> tuple[Sequence[str], Sequence[Listed]]:
        """As a directory: the prefixes and the objects directly below this one."""

"""Copies of files in an object store."""

from __future__ import annotations

import os

from fastckpt.constants import FOOTER_SIZE
from fastckpt.errors import CheckpointNotFoundError, NotACheckpointError
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.fetches import Fetches
from fastckpt.io.ranges import ranges_of
from fastckpt.io.refuse_overwriting import holds_something_else
from fastckpt.io.remote_source import REQUESTS
from fastckpt.io.send_file import send_file
from fastckpt.io.source import Source
from fastckpt.io.transfer import Move, Progress
from fastckpt.nanochat.backing_up import MOVE_IT_AWAY
from fastckpt.remote.path import RemotePath
from fastckpt.remote.store import Version


class ObjectCopies:
    """Copies in an object store.

    An object appears as a whole, so what is there is whole or something else: it is replaced by nothing. It is a copy
    already if it has the size of the file, and

    * of a ``.fckpt`` the same footer: that names the root digest, which stands for every byte, and the file was
      verified against it. Whether the store still has what it was sent is for ``fastckpt verify URL`` to say;
    * of any other file every byte of it, all of which is fetched: nothing in such a file stands for the rest.

    Args:
        place: The prefix.
        threads: Worker threads.
        progress: Called with the bytes sent so far of the current file.
    """

    def __init__(self, place: RemotePath, *, threads: int, progress: Progress | None) -> None:
        self._place = place
        self._threads = threads
        self._progress = progress

    def path(self, name: str) -> str:
        """The URL of a copy."""
        return os.fspath(self._place.joined(name))

    def is_there(self, file: Source, name: str) -> bool:
        """Whether there is a copy of a file.

        Raises:
            MismatchError: There is something else.
        """
        where = self._place.joined(name)
        try:
            version, tail = where.store.tail(where.key, FOOTER_SIZE)
        except CheckpointNotFoundError:
            return False
        if (
            version.size == file.size
            and tail == file.read(file.size - len(tail), len(tail))
            and (len(tail) == file.size or _is_fckpt(file) or _is_same(file, where, version))
        ):
            return True
        raise holds_something_else(os.fspath(where), file.path, next_step=MOVE_IT_AWAY)

    def send(self, file: Source, name: str) -> None:
        """Make a copy of a file, or replace it. Raises what `send_file` raises."""
        send_file(file, self._place.joined(name), threads=self._threads, progress=self._progress)


def _is_fckpt(file: Source) -> bool:
    try:
        return kind_of(file) == "fckpt"
    except NotACheckpointError:
        return False


def _is_same(file: Source, where: RemotePath, version: Version) -> bool:
    """Whether an object of the same size has the same bytes: all of it is fetched."""

    def get(start: int, stop: int) -> memoryview:
        return where.store.get(where.key, start, stop, version)

    ranges = ranges_of([(0, Move(0, 0, version.size))], version.size)
    fetches = Fetches(
        get,
        ranges,
        threads=REQUESTS,
        use=lambda found, data: data == file.read(found.start, len(data)),
        most=None,
    )
    try:
        return all(fetches)
    finally:
        fetches.close()

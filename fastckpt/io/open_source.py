"""What a user named, opened: a file, a remote object, or what a file object gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastckpt.io.file_object import Readables
from fastckpt.io.source import Openable, Source
from fastckpt.remote.path import RemotePath, located


def open_source(path: Readables, *, may_be_empty: bool = False) -> Source:
    """Open a path, a URL or a binary file object.

    Args:
        path: That. Options of a URL are in a `RemotePath`.
        may_be_empty: Take a file of 0 bytes, too, which is no checkpoint.

    Raises:
        NotACheckpointError, CheckpointIOError: See `Source`.
        UsageError: A URL that cannot be used.
    """
    place = located(path)
    if isinstance(place, RemotePath):
        from fastckpt.io.remote_source import RemoteSource  # only here: it would slow down the start of every command

        return RemoteSource(place, may_be_empty=may_be_empty)
    return Source(place, may_be_empty=may_be_empty)


@contextmanager
def source_of(file: Openable) -> Iterator[Source]:
    """What was named, open until the end of the ``with``; or the open file given, which stays open."""
    if isinstance(file, Source):
        yield file
    else:
        with open_source(file) as source:
            yield source

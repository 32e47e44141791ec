"""What is there under a path or the URL of an object: whether it is, how large, what it holds if it is small."""

from __future__ import annotations

import os
import stat

from fastckpt.errors import CheckpointNotFoundError, DamagedError
from fastckpt.io.open_source import open_source
from fastckpt.io.os_errors import exists, path_text
from fastckpt.io.source import read_small
from fastckpt.remote.path import Place, RemotePath


def joined(directory: Place, name: str) -> Place:
    """What has this name in a directory."""
    return os.path.join(directory, name) if isinstance(directory, str) else directory.joined(name)


def is_there(place: Place) -> bool:
    """Whether something has this name.

    Raises:
        CheckpointIOError: The system, or the store, does not say.
    """
    return exists(place) if isinstance(place, str) else size_there(place) is not None


def size_there(place: Place) -> int | None:
    """Bytes of a file; None if there is none, or the system does not say.

    Raises:
        CheckpointIOError: A store does not say.
    """
    if isinstance(place, RemotePath):
        try:
            return (place.seen or place.store.head(place.key)).size
        except CheckpointNotFoundError:
            return None
    try:
        found = os.stat(path_text(place))
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def written_there(place: Place) -> int:
    """When something was last written to, in nanoseconds since 1970; 0 if nobody says."""
    if isinstance(place, RemotePath):
        return int(place.seen.modified * 1e9) if place.seen is not None else 0
    try:
        return os.stat(place).st_mtime_ns
    except OSError:
        return 0


def delete(place: Place) -> None:
    """Delete a file. Raises OSError or CheckpointIOError."""
    if isinstance(place, RemotePath):
        place.store.delete([place.key])
    else:
        os.unlink(place)


def read_whole(place: Place, *, limit: int) -> bytes:
    """All bytes of a small file, which may be empty.

    Args:
        place: The file.
        limit: The most bytes that such a file has.

    Raises:
        DamagedError: It is larger; no more of it was read.
        CheckpointIOError: It cannot be read.
    """
    if isinstance(place, str):
        return read_small(place, limit=limit)
    with open_source(place, may_be_empty=True) as source:
        if source.size > limit:
            raise DamagedError(f"it is larger than {limit} bytes, which no such file is", path=source.path)
        return source.read(0, source.size)

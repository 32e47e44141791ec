"""A file to an object store, as it is."""

from __future__ import annotations

from fastckpt import _core
from fastckpt.errors import DamagedError
from fastckpt.io.source import Source
from fastckpt.io.transfer import MEMORY, Move, Progress, transfer
from fastckpt.io.upload import Upload
from fastckpt.remote.path import RemotePath


def send_file(source: Source, destination: RemotePath, *, threads: int, progress: Progress | None = None) -> None:
    """Make an object of the bytes of an open file: all of it appears in one step, or nothing.

    Args:
        source: The file.
        destination: The object; one that is there is replaced.
        threads: Worker threads.
        progress: Called with the bytes sent so far.

    Raises:
        DamagedError: The file was written to meanwhile; nothing was replaced.
        CheckpointIOError: It cannot be read, or the store does not take it.
    """
    with Upload(destination, most=source.size) as sink:
        at = 0
        while at < source.size:
            room = sink.memory(at, source.size - at)
            move = Move(at, _core.address(room), len(room))
            transfer([move], source=source.fd, sink=MEMORY, threads=threads, leaves=False).require_read([move])
            at += len(room)
            if progress is not None:
                progress(at)
        if not source.unchanged():
            raise DamagedError("the file was written to while it was sent", path=source.path, next_step="send it again")
        sink.finish(source.size)

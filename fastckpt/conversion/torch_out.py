"""A ``.pt`` written by torch itself, for states that never were one."""

from __future__ import annotations

import os

import torch

from fastckpt.errors import OutOfSpaceError
from fastckpt.io.commit import Commit
from fastckpt.loading.load import load


class _SinkFile:
    """The writable file object that torch.save wants, over a `Commit`."""

    def __init__(self, sink: Commit) -> None:
        self._sink = sink
        self.size = 0

    def write(self, data: bytes) -> int:
        self._sink.write(self.size, data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered here."""


def save_with_torch(path: str, destination: str | os.PathLike[str], *, durable: bool, threads: int) -> None:
    """``torch.save`` the state of a checkpoint, from mapped memory, with the commit protocol.

    Raises:
        DamagedError: The checkpoint is damaged; nothing is committed.
        OutOfSpaceError, CheckpointIOError: The destination is untouched.
    """
    state = load(path, mmap=True, threads=threads)
    with Commit(destination, durable=durable, reserve=None) as sink:
        file = _SinkFile(sink)
        failure: OutOfSpaceError | None = None
        try:
            torch.save(state, file)  # type: ignore[arg-type]
        except RuntimeError as error:
            # torch reports a failed write as "unexpected pos"; the cause is in the chain.
            failure = error.__context__ if isinstance(error.__context__, OutOfSpaceError) else None
            if failure is None:
                raise
        if failure is not None:
            raise failure
        sink.finish(file.size)

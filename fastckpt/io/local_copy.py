"""Copies of remote objects in a temporary directory, for what works on files and what is beside them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fastckpt.errors import CheckpointNotFoundError
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.remote_source import REQUESTS, RemoteSource
from fastckpt.io.transfer import Move
from fastckpt.remote.path import RemotePath


@contextmanager
def local_copy(place: RemotePath, beside: str) -> Iterator[str]:
    """The path of a copy of an object, under its own name, and of what has ``beside`` at the end of that, if there is.

    Raises:
        CheckpointNotFoundError, CheckpointIOError, OutOfSpaceError
    """
    with tempfile.TemporaryDirectory(prefix="fastckpt-") as directory:
        path = os.path.join(directory, os.path.basename(place.key))
        _copy(place, path)
        with suppress(CheckpointNotFoundError):
            _copy(place.beside(beside), path + beside)
        yield path


def _copy(place: RemotePath, path: str) -> None:
    with (
        RemoteSource(place, may_be_empty=True) as source,
        typed_os_errors(path, doing="copy a remote file"),
        open(path, "xb", buffering=0) as there,
    ):
        source.transfer([Move(0, 0, source.size)], sink=there.fileno(), threads=REQUESTS, leaves=False)
        source.require_unchanged(next_step="try it again")

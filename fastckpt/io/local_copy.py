"""Copies of remote objects in a temporary directory, for what works on files and what is beside them."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from fastckpt.errors import CheckpointIOError, CheckpointNotFoundError, FastckptError
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.remote.path import RemotePath


@contextmanager
def local_copy(place: RemotePath, beside: str) -> Iterator[str]:
    """The path of a copy of an object, under its own name, and of what has ``beside`` at the end of that, if there is.

    An error in the block about the copy becomes one about the object.

    Raises:
        CheckpointNotFoundError, CheckpointIOError, OutOfSpaceError
    """
    with tempfile.TemporaryDirectory(prefix="fastckpt-") as directory:
        path = os.path.join(directory, os.path.basename(place.key))
        copy_object(place, path)
        try:
            copy_object(place.beside(beside), path + beside)
        except CheckpointIOError as error:  # Some stores say that of what is not there.
            if not isinstance(error, CheckpointNotFoundError) and error.errno != errno.EACCES:
                raise
        try:
            yield path
        except FastckptError as error:
            if error.path == path:
                error.path = os.fspath(place)
            raise


@contextmanager
def local_directory(place: RemotePath) -> Iterator[str]:
    """The path of a copy of a directory in a store: of all objects directly in it, under their own names.

    An error in the block about what is in the copy becomes one about the object.

    Raises:
        CheckpointIOError, OutOfSpaceError
    """
    with tempfile.TemporaryDirectory(prefix="fastckpt-") as directory:
        for found in place.store.list_here(place.key)[1]:
            if name := found.key[len(place.key) :]:
                copy_object(place.at(found.key, found.version), os.path.join(directory, name))
        try:
            yield directory
        except FastckptError as error:
            if error.path is not None:
                error.path = str(error.path).replace(directory + os.sep, str(place)).replace(directory, str(place))
            raise


def copy_object(place: RemotePath, path: str) -> None:
    """Copy an object into a new file."""
    from fastckpt.io.remote_source import RemoteSource  # only here: it would slow down the start of every command

    source = RemoteSource(place, may_be_empty=True)
    with (
        source,
        typed_os_errors(path, doing="copy a remote file"),
        open(path, "xb", buffering=0) as there,
    ):
        source.copy_to(there.fileno())

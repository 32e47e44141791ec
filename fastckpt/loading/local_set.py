"""A directory in a store that is one checkpoint, as one here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from fastckpt.constants import SET_NAME
from fastckpt.errors import FastckptError, NotACheckpointError
from fastckpt.foreign.suffixes import INDEX_SUFFIX
from fastckpt.io.local_copy import copy_object
from fastckpt.remote.path import RemotePath


@contextmanager
def local_set(place: RemotePath) -> Iterator[str]:
    """The path of a copy of a directory in a store that is a checkpoint of several files: of all that is in it.

    Raises:
        NotACheckpointError: Nothing in it says that it is one.
        CheckpointIOError, OutOfSpaceError
    """
    _, objects = place.store.list_here(place.key)
    names = {found.key[len(place.key) :]: found.key for found in objects}
    if SET_NAME not in names and not any(name.endswith(INDEX_SUFFIX) for name in names):
        raise NotACheckpointError(
            "this is a directory, and not of one checkpoint in several files",
            path=place,
            expected=f"{SET_NAME}, or a model with NAME{INDEX_SUFFIX}",
            next_step="give the URL of a file in it, or copy it to a local directory",
        )
    with tempfile.TemporaryDirectory(prefix="fastckpt-") as directory:
        for name, key in names.items():
            if name:  # Some programs put an empty object where a directory would be.
                copy_object(place.at(key), os.path.join(directory, name))
        try:
            yield directory
        except FastckptError as error:
            if error.path is not None:
                error.path = str(error.path).replace(directory + os.sep, str(place)).replace(directory, str(place))
            raise

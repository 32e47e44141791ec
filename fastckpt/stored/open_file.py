"""The door: a path, or a file that is open already, becomes an `OpenedFile`."""

from __future__ import annotations

from fastckpt.collector import collector_paused
from fastckpt.errors import FastckptError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.source import Openable, Source
from fastckpt.stored.fckpt import OpenedFckpt
from fastckpt.stored.foreign import OpenedForeign
from fastckpt.stored.opened import OpenedFile


def open_file(file: Openable) -> OpenedFile:
    """Open a checkpoint of any format; only its structure is read.

    Args:
        file: A path, or an open file, which is then closed with the checkpoint. (If this raises, it stays open.)

    Raises:
        NotACheckpointError, UnsupportedVersionError, UnsupportedStateError: It cannot be read.
        DamagedError: Its structure is cut or damaged.
        CheckpointIOError: The system could not open or read it.
    """
    source = file if isinstance(file, Source) else Source(file)
    try:
        with collector_paused():
            if kind_of(source) not in (None, "fckpt"):
                return OpenedForeign(source, open_foreign(source))
            return OpenedFckpt(CheckpointFile(source))
    except BaseException as error:
        if source is not file:
            source.close()
        if isinstance(error, FastckptError):
            error.path = error.path or source.path
        raise

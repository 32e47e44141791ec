"""The door: a path, or a file that is open already, becomes an `OpenedFile`."""

from __future__ import annotations

from fastckpt.collector import collector_paused
from fastckpt.errors import FastckptError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.open_source import open_source
from fastckpt.io.source import Openable, Source
from fastckpt.seals.beside import require_same_file, seal_beside
from fastckpt.stored.fckpt import OpenedFckpt
from fastckpt.stored.foreign import OpenedForeign
from fastckpt.stored.opened import OpenedFile
from fastckpt.stored.sealed import OpenedSealed, require_all_as_sealed


def open_file(file: Openable, *, sealed: bool = True) -> OpenedFile:
    """Open a checkpoint of any format; only its structure is read.

    A ``.fckpt`` is proven by its own digests. Of another one with a seal beside it that proves every byte.

    Args:
        file: A path, or an open file, which is then closed with the checkpoint. (If this raises, it stays open.)
        sealed: Whether a seal that is beside it counts.

    Raises:
        NotACheckpointError, UnsupportedVersionError, UnsupportedStateError: It cannot be read.
        DamagedError: Its structure is cut or damaged; or it is not the file that was sealed, or its seal is damaged.
        CheckpointIOError: The system could not open or read it.
    """
    source = file if isinstance(file, Source) else open_source(file)
    try:
        with collector_paused():
            if kind_of(source) not in (None, "fckpt"):
                return _open_foreign(source, sealed=sealed)
            return OpenedFckpt(CheckpointFile(source))
    except BaseException as error:
        if source is not file:
            source.close()
        if isinstance(error, FastckptError):
            error.path = error.path or source.path
        raise


def _open_foreign(source: Source, *, sealed: bool) -> OpenedFile:
    sums = seal_beside(source) if sealed else None
    if sums is None:
        return OpenedForeign(source, open_foreign(source))
    require_same_file(source, sums)
    foreign = open_foreign(source)
    if source.has_other_form:
        require_all_as_sealed(source, sums)
        return OpenedForeign(source, foreign)
    return OpenedSealed(source, foreign, sums)

"""The seal beside an open file, if there is one."""

from __future__ import annotations

import errno
import os

from fastckpt.constants import SUMS_SUFFIX
from fastckpt.errors import FILE_OBJECT, CheckpointIOError, CheckpointNotFoundError, DamagedError, FastckptError
from fastckpt.findings import Finding, Kind
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.seals.names import is_sums_path, sealed_name, sums_path
from fastckpt.seals.sums import Sums, read_sums
from fastckpt.text import quoted, size_text


def seal_beside(source: Source) -> Sums | None:
    """What the sums file beside a file says; None where there is none, and of what is no file with a name.

    It is read once for each open file.

    Raises:
        DamagedError, NotACheckpointError, UnsupportedVersionError: It cannot be used.
        CheckpointIOError: It cannot be read.
    """
    if "seal" not in source.remembered:
        source.remembered["seal"] = _read_beside(source)
    sums: Sums | None = source.remembered["seal"]
    return sums


def _read_beside(source: Source) -> Sums | None:
    if source.path == FILE_OBJECT or source.unpacked is not None or is_sums_path(source.path):
        return None
    try:
        return read_sums(source.beside(SUMS_SUFFIX), threads=reading_threads(source, None))
    except CheckpointNotFoundError:
        return None
    except CheckpointIOError as error:
        # A store says the same of what is not there to those who may not list what is.
        if source.far and error.errno == errno.EACCES:
            return None
        raise


def why_of_another(source: Source, sums: Sums) -> str | None:
    """Why a seal is not of this file, as far as name and size tell; None if they are those in it."""
    if sealed_name(source.path) != sums.name:
        return f"the seal beside it is of a file called {sums.name}"
    if source.file_size != sums.size:
        here, then = (size_text(size) if size > 9999 else f"{size} bytes" for size in (source.file_size, sums.size))
        if here == then:
            here, then = f"{source.file_size} bytes", f"{sums.size} bytes"
        return f"it has {here}, and {then} were sealed"
    return None


def require_same_file(source: Source, sums: Sums) -> None:
    """Raise DamagedError unless name and size of a file are those of its seal."""
    why = why_of_another(source, sums)
    if why is not None:
        raise DamagedError(
            f"this is not the file that was sealed: {why}",
            path=source.path,
            next_step=f"{advice_for_stale(source.path)}; verify=False loads it as it is",
        )


def advice_for_stale(path: str) -> str:
    """What to do about a file that was written anew since it was sealed."""
    return f"fastckpt seal --update {quoted(path)}, if it was written anew on purpose"


def advice_for_another(path: str, sums: Sums) -> str:
    """The same, and how to have what was sealed under another name, where a seal has parity to make that from."""
    advice = advice_for_stale(path)
    if sums.parity is not None:
        advice += f"; fastckpt repair {quoted(path)} -o OTHER writes what was sealed, if enough of that is left"
    return advice


def unusable(path: str, error: FastckptError) -> Finding:
    """What is said of a file whose seal cannot be used."""
    text = f"the seal beside it, {os.path.basename(sums_path(path))}, proves nothing: {error.message}"
    return Finding(Kind.INCONSISTENT, text, 0, 0, loss=False)

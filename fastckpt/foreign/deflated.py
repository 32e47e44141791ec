"""A ``.pt`` whose records somebody deflated: read in the form that torch would have written, from a temporary file.

No reader goes to and fro in deflated bytes. So all records are inflated once,
each compared with its CRC-32, and everything else reads the result.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Final

from fastckpt.errors import DamagedError, FastckptError, NotACheckpointError, UnsupportedStateError
from fastckpt.findings import Finding
from fastckpt.foreign.inflate import inflated
from fastckpt.foreign.zip_account import account_for
from fastckpt.foreign.zip_records import PACK_AGAIN, ZipArchive, ZipRecord, read_archives
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.source import Source

_GROWTH: Final = 100
_ALLOWED: Final = 2**26
"""What all records may become: so many times the size of the file, and so many bytes more."""
_STRUCTURE_GROWTH: Final = 16
_STRUCTURE_ALLOWED: Final = 2**18
"""The same for a pickle, which takes far longer to read than to inflate. Those of torch become 4 to 5 times as many."""
_PIECE: Final = 2**20


def findings_of(source: Source) -> list[Finding] | None:
    """What is strange about the bytes of a file that is read in another form; None of all others."""
    found: list[Finding] | None = source.remembered.get("strange")
    return found


def is_deflated(names: Iterable[tuple[str, bool]]) -> bool:
    """Whether a pickle or a storage is deflated; ``names`` are those of records, and whether they are."""
    inner = (name.partition("/")[2] for name, deflated in names if deflated)
    return any(name == "data.pkl" or name.startswith("data/") for name in inner)


def inflate_file(source: Source, archives: Sequence[ZipArchive]) -> bool:
    """Let a file be read in the form that torch writes, if it is deflated; whether it was.

    Raises:
        DamagedError: A record is not what its CRC-32 says, or becomes more or less than the directory says.
        UnsupportedStateError: It would become far larger, as a zip bomb does.
        OutOfSpaceError, CheckpointIOError: There is no room for it, or it cannot be read.
    """
    records = [record for archive in archives for record in archive.records.values()]
    if source.has_other_form or not is_deflated((record.name, record.full is not None) for record in records):
        return False
    if len(archives) > 1:
        raise UnsupportedStateError("several archives in one file, with deflated records", next_step=PACK_AGAIN)
    whole = sum(record.size if record.full is None else record.full for record in records)
    if whole > most_inflated(source):
        raise too_large(source, whole)
    for record in records:
        if record.full is not None:
            require_growth(source, record.name, record.size, record.full)
    found = list(account_for(source, list(archives)))
    with read_instead_of(source) as there, zipfile.ZipFile(there, "w") as archive:
        for record in records:
            if not record.name.endswith("/"):
                _copy(source, record, archive)
    source.remembered["strange"] = found
    return True


@contextmanager
def read_instead_of(source: Source) -> Iterator[IO[bytes]]:
    """A temporary file for the form that torch writes: once that stands in it, it is read in place of the file.

    Raises:
        OutOfSpaceError, CheckpointIOError: There is no room for it, or the file cannot be read.
    """
    doing = f"inflate it to a temporary file in {tempfile.gettempdir()}"
    with typed_os_errors(source.path, doing=doing), tempfile.TemporaryFile() as there:
        yield there
        there.flush()
        source.read_instead(os.dup(there.fileno()))


def most_inflated(source: Source) -> int:
    """How many bytes the records of a file may become."""
    return _GROWTH * source.file_size + _ALLOWED


def too_large(source: Source, size: int) -> UnsupportedStateError:
    """The error for a file that would become as many bytes."""
    return _bomb(source, "its records are", size, source.file_size)


def require_growth(source: Source, name: str, nbytes: int, becomes: int) -> None:
    """Raise UnsupportedStateError if a record that is read to know what a file holds becomes far larger than it is."""
    inner = name.partition("/")[2]
    is_structure = inner == "data.pkl" or inner.endswith(".json")
    if is_structure and becomes > _STRUCTURE_GROWTH * nbytes + _STRUCTURE_ALLOWED:
        raise _bomb(source, f"the record {name[:200]} is", becomes, nbytes)


def _bomb(source: Source, what: str, becomes: int, nbytes: int) -> UnsupportedStateError:
    return UnsupportedStateError(
        f"{what} said to become {becomes} bytes, which is far more than there are, as in a zip bomb",
        path=source.path,
        actual=f"{nbytes} bytes",
        next_step="if you trust it, " + PACK_AGAIN,
    )


def inflate_if_whole(source: Source) -> FastckptError | None:
    """`inflate_file` for a file that may be damaged: then it is left as it is, and the error tells why."""
    try:
        inflate_file(source, read_archives(source))
    except (DamagedError, NotACheckpointError, UnsupportedStateError) as error:
        return error
    except FastckptError as error:
        error.path = error.path or source.path
        if error.offset is None:
            raise
        return error
    return None


def _copy(source: Source, record: ZipRecord, archive: zipfile.ZipFile) -> None:
    crc = 0
    with archive.open(zipfile.ZipInfo(record.name), "w", force_zip64=(record.full or record.size) > 2**31) as target:
        for piece in _pieces(source, record):
            crc = zlib.crc32(piece, crc)
            target.write(piece)
    if crc != record.crc:
        raise DamagedError(
            f"the record {record.name[:200]} is damaged: its CRC-32 does not match",
            path=source.path,
            offset=record.offset,
            expected=f"{record.crc:08x}",
            actual=f"{crc:08x}",
        )


def _pieces(source: Source, record: ZipRecord) -> Iterator[bytes]:
    if record.full is not None:
        yield from inflated(source, record.offset, record.size, record.full, name=record.name[:200])
        return
    for at in range(record.offset, record.offset + record.size, _PIECE):
        yield source.read(at, min(_PIECE, record.offset + record.size - at))

"""The records of an uncompressed zip archive and where their bytes begin."""

from __future__ import annotations

import os
import struct
import zipfile
from typing import Final, NamedTuple

from fastckpt.errors import DamagedError, NotACheckpointError, UnsupportedStateError
from fastckpt.io.os_errors import translate_os_error
from fastckpt.io.source import Source

# PKWARE APPNOTE 4.3.7: signature, version, flags, method, time, date, CRC, two sizes, name and extra length.
_LOCAL_HEADER: Final = struct.Struct("<4sHHHHHIIIHH")
_LOCAL_MAGIC: Final = b"PK\x03\x04"
_FLAG_ENCRYPTED: Final = 0x1 | 0x40
_FLAG_UTF8: Final = 0x800
# What zipfile raises for a directory that makes no sense.
_DIRECTORY_ERRORS: Final = (
    zipfile.BadZipFile,
    NotImplementedError,
    ValueError,
    OverflowError,
    EOFError,
    struct.error,
)


class ZipRecord(NamedTuple):
    """A file inside the archive: where its bytes begin, how many they are, and the CRC-32 the directory states."""

    name: str
    offset: int
    size: int
    crc: int


def read_records(source: Source) -> dict[str, ZipRecord]:
    """All records by name, in directory order.

    Raises:
        DamagedError: The directory is missing (a cut file) or disagrees with
            the headers in front of the records; records overlap or share a name.
        UnsupportedStateError: A record is compressed or encrypted.
        CheckpointIOError: The system could not read.
    """
    infos, directory_start = _read_directory(source)
    records: dict[str, ZipRecord] = {}
    ends: list[tuple[int, int, str]] = []
    for info in infos:
        name = info.orig_filename
        if name in records:
            raise DamagedError(f"the archive has two records named {name[:200]!r}", offset=info.header_offset)
        if info.flag_bits & _FLAG_ENCRYPTED:
            raise UnsupportedStateError(f"the record {name[:200]} is encrypted", next_step="decrypt the archive first")
        if info.compress_type != zipfile.ZIP_STORED:
            raise UnsupportedStateError(
                f"the record {name[:200]} is compressed, which torch never does",
                next_step="save it again with torch, or unpack the archive and pack it without compression (zip -0)",
            )
        if info.compress_size != info.file_size:
            raise DamagedError(
                f"the record {name[:200]} has two sizes",
                offset=info.header_offset,
                expected=info.file_size,
                actual=info.compress_size,
            )
        offset = _data_offset(source, info)
        records[name] = ZipRecord(name, offset, info.file_size, info.CRC)
        ends.append((info.header_offset, offset + info.file_size, name))
    _check_disjoint(ends, directory_start)
    return records


def _read_directory(source: Source) -> tuple[list[zipfile.ZipInfo], int]:
    try:
        with os.fdopen(os.dup(source.fd), "rb") as file, zipfile.ZipFile(file) as archive:
            return archive.infolist(), archive.start_dir
    except _DIRECTORY_ERRORS as error:
        if isinstance(error.__context__, OSError):  # zipfile takes a failed read for a missing directory.
            raise translate_os_error(error.__context__, source.path, doing="read") from None
        if not source.read(0, min(4, source.size), what="archive").startswith(_LOCAL_MAGIC):
            raise NotACheckpointError("neither a .pt, .safetensors nor .fckpt file") from None
        raise DamagedError(
            f"the file is cut or its end is damaged: it has {source.size} bytes, "
            f"and the directory that a zip archive ends with is not there or not valid ({error})"
        ) from None
    except OSError as error:
        raise translate_os_error(error, source.path, doing="read") from error


def _data_offset(source: Source, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a record begin, from the header in front of them."""
    what = f"header of record {info.orig_filename[:200]}"
    name = info.orig_filename.encode("utf-8" if info.flag_bits & _FLAG_UTF8 else "cp437")
    raw = source.read(info.header_offset, _LOCAL_HEADER.size + len(name), what=what)
    magic, _, flags, method, _, _, _, _, _, name_size, extra_size = _LOCAL_HEADER.unpack_from(raw)
    if magic != _LOCAL_MAGIC:
        raise DamagedError(f"the {what} is not there", offset=info.header_offset, expected=_LOCAL_MAGIC, actual=magic)
    if name_size != len(name) or raw[_LOCAL_HEADER.size :] != name:
        raise DamagedError(f"the {what} has another name than the directory", offset=info.header_offset)
    if method != zipfile.ZIP_STORED or flags & _FLAG_ENCRYPTED:
        raise DamagedError(f"the {what} disagrees with the directory about compression", offset=info.header_offset)
    return info.header_offset + len(raw) + int(extra_size)


def _check_disjoint(ends: list[tuple[int, int, str]], directory_start: int) -> None:
    """Raise DamagedError if a record reaches into the next one or into the directory."""
    ends.sort()
    limits = [header for header, _, _ in ends[1:]] + [directory_start]
    for (_, end, name), limit in zip(ends, limits, strict=False):
        if end > limit:
            raise DamagedError(
                f"the record {name[:200]} reaches into what follows it",
                expected=f"an end at {limit} or before",
                actual=end,
            )

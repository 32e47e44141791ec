"""The records of zip archives and where their bytes begin.

A file can hold several archives, one behind the other: that is what several
calls of torch.save into one file object leave, and how a shard of
torch.distributed.checkpoint is made. All of them are read, from the last one
back to where nothing ends that would be one.
"""

from __future__ import annotations

import errno
import io
import os
import struct
import zipfile
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from fastckpt.errors import DamagedError, NotACheckpointError, UnsupportedStateError
from fastckpt.foreign.torch_export import EXPORT_WEIGHTS
from fastckpt.io.os_errors import translate_os_error
from fastckpt.io.read_parts import read_parts
from fastckpt.io.source import Source
from fastckpt.layout.blocks import Extent
from fastckpt.layout.zip_layout import BIG, END_MAGIC, LOCAL_HEADER, LOCAL_MAGIC, next_place

if TYPE_CHECKING:
    from typing_extensions import Buffer

_FLAG_ENCRYPTED: Final = 0x1 | 0x40
_FLAG_UTF8: Final = 0x800
_FLAG_DESCRIPTOR: Final = 0x8
_END_SIZE: Final = 22
_MAX_COMMENT: Final = 0xFFFF
MAX_ARCHIVES: Final = 100_000
"""Archives in one file; a shard of torch.distributed.checkpoint has one for each of its tensors."""
PACK_AGAIN: Final = "unpack the archive and pack it without compression: zip -0 -r NAME.pt FOLDER"
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
    """A file inside an archive.

    Attributes:
        name: Its name, with the directory.
        header: Where its local header begins.
        offset: Where its bytes begin.
        size: How many they are in the file.
        crc: The CRC-32 that the directory states.
        described: Whether CRC-32 and size stand behind the bytes too.
        full: How many bytes it becomes when it is inflated; None where it is stored as it is.
    """

    name: str
    header: int
    offset: int
    size: int
    crc: int
    described: bool
    full: int | None = None


class ZipArchive(NamedTuple):
    """An archive, which is all or a part of a file.

    Attributes:
        records: By name, in the order of the directory.
        begin: Where it begins: with the first local header.
        directory: Where the central directory begins.
        end: The first byte behind it.
    """

    records: dict[str, ZipRecord]
    begin: int
    directory: int
    end: int


def folders_of(names: Iterable[str]) -> list[str]:
    """The folders in an archive that a checkpoint is in: of one that torch wrote, the stem of its file's name."""
    found = (name.partition("/") for name in names)
    return [top for top, _, inner in found if inner in ("data.pkl", EXPORT_WEIGHTS)]


def read_archives(source: Source) -> list[ZipArchive]:
    """All archives of a file that ends with one, in file order.

    Bytes in front of the first one, between two, and behind the last one are
    for the caller to account for.

    Raises:
        DamagedError: A directory is missing (a cut file, or one in front of another archive) or disagrees with
            the headers in front of the records; records overlap or share a name.
        UnsupportedStateError: A record is compressed or encrypted; more archives than any writer leaves.
        CheckpointIOError: The system could not read.
    """
    archives = [read_archive(source, source.size)]
    while _ends_archive(source, archives[-1].begin):
        if len(archives) == MAX_ARCHIVES:
            raise UnsupportedStateError(f"more than {MAX_ARCHIVES} archives stand in this file one behind the other")
        archives.append(read_archive(source, archives[-1].begin))
    begin = archives[-1].begin
    if begin and source.read(0, len(LOCAL_MAGIC)) == LOCAL_MAGIC:
        # A save that was cut before another one was appended; or a cut file of which a tensor holds an archive.
        raise DamagedError(
            f"the first {begin} bytes are of an archive whose directory is lost: what is whole behind it is not all",
            offset=0,
        )
    return archives[::-1]


def _ends_archive(source: Source, at: int) -> bool:
    """Whether an archive without a comment ends at ``at``, where another one begins."""
    return at >= _END_SIZE and source.read(at - _END_SIZE, len(END_MAGIC)) == END_MAGIC


def read_archive(source: Source, end: int) -> ZipArchive:
    """The last archive in the first ``end`` bytes of a file. Raises what `read_archives` does."""
    infos, directory = _read_directory(source, end)
    if source.far and (laid_out := _laid_out_by_torch(infos, directory)) is not None:
        records = laid_out
    else:
        records = _told_by_headers(source, infos)
        _check_disjoint(records, directory)
    begin = min((record.header for record in records.values()), default=directory)
    return ZipArchive(records, begin, directory, _end_of_archive(source, directory, end))


def require_headers(source: Source, archive: ZipArchive) -> None:
    """Read the headers in front of the records of an archive, unless they were when it was read.

    Raises:
        DamagedError: One is not there, or does not agree with the directory.
        CheckpointIOError: The system could not read.
    """
    if not source.far:
        return
    infos, _ = _read_directory(source, archive.end)
    for record in _told_by_headers(source, infos).values():
        if record != archive.records[record.name]:
            message = f"the header of record {record.name[:200]} disagrees with the directory about where it begins"
            raise DamagedError(message, offset=record.header)


def _told_by_headers(source: Source, infos: Sequence[zipfile.ZipInfo]) -> dict[str, ZipRecord]:
    records: dict[str, ZipRecord] = {}
    places = [Extent(info.header_offset, LOCAL_HEADER.size + len(_stored_name(info))) for info in infos]
    for info, place, here in zip(infos, places, read_parts(source, places), strict=True):
        name = info.orig_filename
        if name in records:
            raise DamagedError(f"the archive has two records named {name[:200]!r}", offset=info.header_offset)
        header = here or source.read(*place, what=f"header of record {name[:200]}")
        records[name] = _record(info, header)
    return records


def _laid_out_by_torch(infos: Sequence[zipfile.ZipInfo], directory: int) -> dict[str, ZipRecord] | None:
    """The records, if each is where torch puts it, and the directory right behind the last one.

    Then the headers, which lie all over the file, say nothing that is needed to read it; `fastckpt.verify` reads
    them. That the bytes of a record are the right ones, its CRC-32 says.
    """
    records: dict[str, ZipRecord] = {}
    at = 0
    for info in infos:
        name, size = info.orig_filename, info.file_size
        usual = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & _FLAG_ENCRYPTED
        described = bool(info.flag_bits & _FLAG_DESCRIPTOR)
        if info.header_offset != at or not usual or info.compress_size != size or name in records:
            return None
        if size and not described:
            return None
        place = next_place(at, name, size)
        records[name] = ZipRecord(name, at, place.data, size, info.CRC, described)
        at = place.data + size + place.descriptor
    return records if at == directory else None


def _record(info: zipfile.ZipInfo, header: bytes | memoryview) -> ZipRecord:
    name = info.orig_filename
    # Compared first: a directory that alone says that a record is packed is damaged.
    offset, flags = _check_header(info, header)
    if info.flag_bits & _FLAG_ENCRYPTED:
        raise UnsupportedStateError(f"the record {name[:200]} is encrypted", next_step="decrypt the archive first")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnsupportedStateError(
            f"the record {name[:200]} is compressed in a way that no version of torch reads",
            next_step=PACK_AGAIN,
        )
    if info.compress_type == zipfile.ZIP_DEFLATED:
        described = bool(flags & _FLAG_DESCRIPTOR)
        return ZipRecord(name, info.header_offset, offset, info.compress_size, info.CRC, described, info.file_size)
    if info.compress_size != info.file_size:
        raise DamagedError(
            f"the record {name[:200]} has two sizes",
            offset=info.header_offset,
            expected=info.file_size,
            actual=info.compress_size,
        )
    return ZipRecord(name, info.header_offset, offset, info.file_size, info.CRC, bool(flags & _FLAG_DESCRIPTOR))


class _Beginning(io.RawIOBase):
    """The first ``end`` bytes of a file, as zipfile reads them."""

    def __init__(self, source: Source, end: int) -> None:
        self._source = source
        self._end = end
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)[: max(self._end - self._at, 0)]
        data = self._source.read(self._at, min(view.nbytes, max(self._source.size - self._at, 0)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def _read_directory(source: Source, end: int) -> tuple[list[zipfile.ZipInfo], int]:
    try:
        with io.BufferedReader(_Beginning(source, end)) as file, zipfile.ZipFile(file) as archive:
            return archive.infolist(), archive.start_dir
    except _DIRECTORY_ERRORS as error:
        if isinstance(error.__context__, OSError):  # zipfile takes a failed read for a missing directory.
            raise translate_os_error(error.__context__, source.path, doing="read") from None
        if not source.read(0, min(4, source.size), what="archive").startswith(LOCAL_MAGIC):
            raise NotACheckpointError("neither a .pt, .safetensors nor .fckpt file") from None
        if end < source.size:
            raise DamagedError(
                f"the directory of the archive that ends at byte {end} is damaged ({error})", offset=end - _END_SIZE
            ) from None
        raise DamagedError(
            f"the file is cut or its end is damaged: it has {source.size} bytes, "
            f"and the directory that a zip archive ends with is not there or not valid ({error})"
        ) from None
    except OSError as error:
        raise translate_os_error(error, source.path, doing="read") from error


def _end_of_archive(source: Source, directory: int, end: int) -> int:
    """Where the end record and its comment end. zipfile has found it, and looks for it in the same order."""
    if _ends_archive(source, end):
        return end
    start = max(directory, end - _END_SIZE - _MAX_COMMENT)
    tail = source.read(start, end - start)
    at = tail.rfind(END_MAGIC)
    (comment,) = struct.unpack_from("<H", tail, at + _END_SIZE - 2)
    return min(start + at + _END_SIZE + int(comment), end)


def _stored_name(info: zipfile.ZipInfo) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & _FLAG_UTF8 else "cp437")


def _check_header(info: zipfile.ZipInfo, raw: bytes | memoryview) -> tuple[int, int]:
    """Where the bytes of a record begin, and its flags, from the header in front of them."""
    what = f"header of record {info.orig_filename[:200]}"
    name = _stored_name(info)
    magic, _, flags, method, _, _, _, stored, full, name_size, extra_size = LOCAL_HEADER.unpack_from(raw)
    if magic != LOCAL_MAGIC:
        raise DamagedError(f"the {what} is not there", offset=info.header_offset, expected=LOCAL_MAGIC, actual=magic)
    if name_size != len(name) or raw[LOCAL_HEADER.size :] != name:
        raise DamagedError(f"the {what} has another name than the directory", offset=info.header_offset)
    if method != info.compress_type or (flags ^ info.flag_bits) & _FLAG_ENCRYPTED:
        raise DamagedError(f"the {what} disagrees with the directory about compression", offset=info.header_offset)
    sizes = (info.compress_size, info.file_size)
    # Before a size that is only a flipped bit is taken for a bomb.
    if method == zipfile.ZIP_DEFLATED and (stored, full) not in (sizes, (BIG, BIG)) and not flags & _FLAG_DESCRIPTOR:
        raise DamagedError(
            f"the {what} and the directory state different sizes",
            offset=info.header_offset,
            expected=sizes,
            actual=(stored, full),
        )
    return info.header_offset + len(raw) + int(extra_size), flags


def _check_disjoint(records: dict[str, ZipRecord], directory: int) -> None:
    """Raise DamagedError if a record reaches into the next one or into the directory."""
    ordered = sorted(records.values(), key=lambda record: record.header)
    limits = [*(record.header for record in ordered[1:]), directory]
    for record, limit in zip(ordered, limits, strict=False):  # An archive can be empty.
        if record.offset + record.size > limit:
            raise DamagedError(
                f"the record {record.name[:200]} reaches into what follows it",
                expected=f"an end at {limit} or before",
                actual=record.offset + record.size,
            )

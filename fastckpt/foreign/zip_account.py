"""Is every byte of a file of zip archives a part of one, and does what stands twice in it agree?

A record has a local header in front, padding in the header's extra field and,
if torch wrote it, a descriptor behind. The central directory repeats what they
say. Nothing proves these bytes, so they are compared with each other and with
what torch always writes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from fastckpt.findings import Finding, Kind
from fastckpt.foreign.zip_records import ZipArchive, ZipRecord, folders_of, require_headers
from fastckpt.io.source import Source
from fastckpt.layout.zip_layout import (
    BIG,
    CENTRAL_HEADER,
    DESCRIPTOR_MAGIC,
    END64_MAGIC,
    END_MAGIC,
    LOCAL_HEADER,
    descriptor_size,
)

_PADDING_ID: Final = 0x4246
"""The extra field, "FB", with which torch fills a local header up to the alignment."""
_PADDING: Final = b"Z"
_DEFLATED_VERSION: Final = 20
"""The version of zip that a deflated record needs: torch states it, and 0 for records that are stored."""
_WRITER: Final = (0, 0, 0)
"""Program, internal and external attributes that torch states in the directory, for every record."""
_END64_VERSIONS: Final = (0x031E, 45)
"""The versions that it states in the record of 64 bits at the end."""
_ZIP64_ID: Final = 0x0001
_ANDROID_ID: Final = 0xD935
_MOST_EXTRA: Final = 64
"""Bytes of an extra field that is no padding: times, sizes and owners take at most 40."""
_KNOWN_IDS: Final = frozenset((_PADDING_ID, _ZIP64_ID, _ANDROID_ID, 0x000A, 0x5455, 0x5855, 0x7855, 0x7875, 0xCAFE))
"""Besides these two: times and owners as Info-ZIP and Windows note them, Java's mark, Android's padding (APPNOTE.TXT,
section 4.5, and Info-ZIP's proginfo/extrafld.txt)."""
_WIDE_VERSIONS: Final = frozenset((0, 10, 20, 45))
"""Versions of zip of which a header and the directory may state different ones where there are numbers of 64 bits."""
_END64: Final = struct.Struct("<4sQHHIIQQQQ")
"""Signature, size of the rest, two versions, two disks, two counts, size and offset of the directory."""
_LOCATOR: Final = struct.Struct("<4sIQI")
_END: Final = struct.Struct("<4sHHHHIIH")
"""Signature, two disks, two counts, size and offset of the directory, size of the comment."""


def account_for(source: Source, archives: list[ZipArchive]) -> Iterator[Finding]:
    """Yield a finding for every range that belongs to nothing, and for every contradiction.

    Args:
        source: The file.
        archives: All that is in it, in file order.
    """
    at = 0
    for number, archive in enumerate(archives):
        yield from unaccounted(at, archive.begin, "in front of the archive" if not number else "between two archives")
        yield from _account_for_one(source, archive)
        at = archive.end
    yield from unaccounted(at, source.size, "behind the archive")


def unaccounted(begin: int, end: int, where: str) -> Iterator[Finding]:
    """A finding for bytes that belong to nothing, if there are any."""
    if begin < end:
        message = f"{end - begin} bytes {where} belong to nothing in this file; nothing proves them"
        yield Finding(Kind.INCONSISTENT, message, begin, end - begin, loss=False)


def _account_for_one(source: Source, archive: ZipArchive) -> Iterator[Finding]:
    require_headers(source, archive)
    raw = source.read(archive.directory, archive.end - archive.directory)
    rows, size, problem = _read_listed(archive, raw)
    at = archive.begin
    writers = []
    folders = tuple(f"{folder}/" for folder in folders_of(archive.records))
    for record, row in sorted(zip(archive.records.values(), rows, strict=True), key=lambda pair: pair[0].header):
        yield from unaccounted(at, record.header, f"in front of the record {record.name[:200]}")
        header = source.read(record.header, record.offset - record.header)
        wrong = _header_problem(record, row, header, archive.begin)
        if _is_padded(header):
            writers.append(row.writer)
        if wrong is not None:
            message = f"the local header of {record.name[:200]} {wrong}"
            yield Finding(Kind.INCONSISTENT, message, record.header, record.offset - record.header, loss=False)
        if folders and not record.name.startswith(folders):
            message = f"the record {record.name[:200]} is outside of the folder {folders[0][:-1]}"
            message += ": it belongs to nothing, and torch refuses a file with such a record"
            yield Finding(Kind.INCONSISTENT, message, record.offset, record.size, loss=False)
        at = record.offset + record.size
        if record.described:
            width = _descriptor_width(source, record, limit=archive.directory)
            if width is None:
                message = f"the descriptor behind {record.name[:200]} and the directory state different sums or sizes"
                yield Finding(Kind.INCONSISTENT, message, at, min(16, archive.directory - at), loss=False)
            at += width or min(descriptor_size(record.header, record.size), archive.directory - at)
    yield from unaccounted(at, archive.directory, "in front of the directory")
    if set(writers) - {_WRITER}:
        problem = problem or "the directory states a program or attributes, which torch leaves at 0"
    # A program that added records has written the end anew.
    own_end = len(writers) == len(rows) and raw.startswith(END64_MAGIC, size)
    if own_end and len(raw) >= size + _END64.size and _END64.unpack_from(raw, size)[2:4] != _END64_VERSIONS:
        problem = problem or "the record at the end states other versions than torch writes"
    problem = problem or _end_problem(archive, raw[size:], size)
    if problem is not None:
        yield Finding(Kind.INCONSISTENT, problem, archive.directory, archive.end - archive.directory, loss=False)


class _Listed(NamedTuple):
    """What the directory says of a record besides its name, sums and sizes; ``writer``: program and attributes."""

    version: int
    flags: int
    time: tuple[int, int]
    writer: tuple[int, int, int]
    extra: dict[int | None, bytes]


def _read_listed(archive: ZipArchive, raw: bytes) -> tuple[list[_Listed], int, str | None]:
    """The rows of a directory, where they end in it, and what is wrong with them. zipfile has read them before."""
    rows = []
    at, problem = 0, None
    for record in archive.records.values():
        _, made, version, flags, _, time, date, *_, name_size, extra_size, comment, disk, inner, outer, _ = (
            CENTRAL_HEADER.unpack_from(raw, at)
        )
        if comment or disk:
            problem = f"the directory has a comment on {record.name[:200]}, or names another disk for it"
        name_end = at + CENTRAL_HEADER.size + name_size
        extra = list(_extra_fields(raw[name_end : name_end + extra_size]))
        if _is_strange(extra):
            problem = f"the directory has an extra field of a kind that is not known for {record.name[:200]}"
        rows.append(_Listed(version, flags, (time, date), (made, inner, outer), dict(extra)))
        at += CENTRAL_HEADER.size + name_size + extra_size + comment
    return rows, at, problem


def _end_problem(archive: ZipArchive, end: bytes, size: int) -> str | None:
    """What is wrong with the records at the end of an archive, behind a directory of ``size`` bytes."""
    count, offsets = len(archive.records), (archive.directory, archive.directory - archive.begin)
    if end.startswith(END64_MAGIC) and len(end) >= _END64.size + _LOCATOR.size:
        _, rest, _, _, disk, start_disk, here, total, stated, offset = _END64.unpack_from(end)
        _, locator_disk, end_offset, disks = _LOCATOR.unpack_from(end, _END64.size)
        if (rest, disk, start_disk, locator_disk, disks) != (_END64.size - 12, 0, 0, 0, 1):
            return "the record at the end of the directory is not as any program writes it"
        if (here, total, stated) != (count, count, size) or offset not in offsets or end_offset != offset + size:
            return "the record at the end states another number of records, or another place of the directory"
        end = end[_END64.size + _LOCATOR.size :]
    if len(end) < _END.size or not end.startswith(END_MAGIC):
        return "the directory does not end where its records do"
    _, disk, start_disk, here, total, stated, offset, comment = _END.unpack_from(end)
    if comment or len(end) > _END.size:
        return "a comment follows the directory, and nothing proves it"
    if (disk, start_disk) != (0, 0) or {here, total} - {min(count, 0xFFFF)} or stated != min(size, BIG):
        return "the record at the end states another number of records, or another size of the directory"
    if offset not in {min(place, BIG) for place in offsets}:
        return "the record at the end states another place of the directory"
    return None


def _header_problem(record: ZipRecord, row: _Listed, raw: bytes, begin: int) -> str | None:
    """What is wrong with a local header that has the right name, of an archive that begins at ``begin``."""
    _, version, flags, _, time, date, crc, stored, size, *_ = LOCAL_HEADER.unpack_from(raw)
    if (flags, time, date) != (row.flags, *row.time):
        return "and the directory state different flags or times"
    extra = list(_extra_fields(_extra_of(raw)))
    if any(kind is None for kind, _ in extra):
        return "has an extra field that does not end in it"
    if _is_strange(extra):
        return "has an extra field of a kind that is not known: nothing proves its bytes"
    # A header of times and owners has what the directory has, and more of it. Sizes are told where they are large.
    if any(kind != _ZIP64_ID and not content.startswith(row.extra.get(kind, b"")) for kind, content in extra):
        return "and the directory have different extra fields"
    wide = any(kind == _ZIP64_ID for kind, _ in extra)
    if not all(_are_numbers_of(record, content, begin) for kind, content in extra if kind == _ZIP64_ID):
        return "has a size or place in its extra field that the directory does not state"
    full = record.size if record.full is None else record.full
    known = {(record.crc, record.size, full), (record.crc, BIG, BIG)}
    # Where a descriptor follows, they are not known yet; with BIG, they will be numbers of 64 bits there.
    if (crc, stored, size) not in (known | {(0, 0, 0), (0, BIG, BIG)} if record.described else known):
        return "and the directory state different sums or sizes"
    if version != row.version and not (wide and {version, row.version} <= _WIDE_VERSIONS):
        return "and the directory state different versions of zip"
    padding = [content for kind, content in extra if kind == _PADDING_ID]
    if not padding:
        return None
    if any(content.strip(_PADDING) for content in padding):
        return "is padded with other bytes than torch writes"
    needed = 0 if record.full is None else _DEFLATED_VERSION
    if (version, row.version, time, date) != (needed, needed, 0, 0) and not wide:
        return "or the directory has a version or a time, which torch leaves at 0"
    return None


def _are_numbers_of(record: ZipRecord, content: bytes, begin: int) -> bool:
    """Whether an extra field has only sizes and the place of a record, or zeros for what is not known yet."""
    full = record.size if record.full is None else record.full
    known = {0, full, record.size, record.header - begin}
    return len(content) % 8 == 0 and known.issuperset(struct.unpack(f"<{len(content) // 8}Q", content))


def _is_padded(raw: bytes) -> bool:
    """Whether a local header is filled up as torch does it."""
    return any(kind == _PADDING_ID for kind, _ in _extra_fields(_extra_of(raw)))


def _extra_of(raw: bytes) -> bytes:
    """What a local header has behind the name."""
    return raw[LOCAL_HEADER.size + int(LOCAL_HEADER.unpack_from(raw)[9]) :]


def _is_strange(fields: Iterable[tuple[int | None, bytes]]) -> bool:
    """Whether there is an extra field in which anything could stand."""
    return any(
        kind not in _KNOWN_IDS or (kind not in (_PADDING_ID, _ANDROID_ID) and len(content) > _MOST_EXTRA)
        for kind, content in fields
    )


def _extra_fields(raw: bytes) -> Iterator[tuple[int | None, bytes]]:
    """Id and content of every extra field in ``raw``; the id of one that is cut is None."""
    at = 0
    while at < len(raw):
        if at + 4 > len(raw):
            yield None, raw[at:]
            return
        kind, size = struct.unpack_from("<HH", raw, at)
        content = raw[at + 4 : at + 4 + size]
        yield (kind if len(content) == size else None), content
        at += 4 + size


def _descriptor_width(source: Source, record: ZipRecord, *, limit: int) -> int | None:
    """Bytes of the descriptor behind a record; None if what stands there is none of this record."""
    at = record.offset + record.size
    raw = source.read(at, min(24, limit - at))
    full = record.size if record.full is None else record.full
    small = struct.pack("<III", record.crc, record.size & 0xFFFFFFFF, full & 0xFFFFFFFF)
    large = struct.pack("<IQQ", record.crc, record.size, full)
    for form in (DESCRIPTOR_MAGIC + large, DESCRIPTOR_MAGIC + small, large, small):
        if raw.startswith(form):
            return len(form)
    return None

"""Is every byte of a file of zip archives a part of one, and does what stands twice in it agree?

A record has a local header in front, padding in the header's extra field and,
if torch wrote it, a descriptor behind. The central directory repeats what they
say. Nothing proves these bytes, so they are compared with each other and with
what torch always writes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from fastckpt.findings import Finding, Kind
from fastckpt.foreign.zip_layout import BIG, DESCRIPTOR_MAGIC, LOCAL_HEADER, descriptor_size
from fastckpt.foreign.zip_records import ZipArchive, ZipRecord
from fastckpt.io.source import Source

_PADDING_ID: Final = 0x4246
"""The extra field, "FB", with which torch fills a local header up to the alignment."""
_PADDING: Final = b"Z"
_ZIP64_ID: Final = 0x0001


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
    at = archive.begin
    for record in sorted(archive.records.values(), key=lambda record: record.header):
        yield from unaccounted(at, record.header, f"in front of the record {record.name[:200]}")
        problem = _header_problem(source, record)
        if problem is not None:
            message = f"the local header of {record.name[:200]} {problem}"
            yield Finding(Kind.INCONSISTENT, message, record.header, record.offset - record.header, loss=False)
        at = record.offset + record.size
        if record.described:
            width = _descriptor_width(source, record, limit=archive.directory)
            if width is None:
                message = f"the descriptor behind {record.name[:200]} and the directory state different sums or sizes"
                yield Finding(Kind.INCONSISTENT, message, at, min(16, archive.directory - at), loss=False)
            at += width or min(descriptor_size(record.header, record.size), archive.directory - at)
    yield from unaccounted(at, archive.directory, "in front of the directory")


def _header_problem(source: Source, record: ZipRecord) -> str | None:
    """What is wrong with a local header that has the right name."""
    raw = source.read(record.header, record.offset - record.header)
    _, version, _, _, time, date, crc, stored, size, name_size, _ = LOCAL_HEADER.unpack_from(raw)
    extra = list(_extra_fields(raw[LOCAL_HEADER.size + name_size :]))
    if any(kind is None for kind, _ in extra):
        return "has an extra field that does not end in it"
    wide = any(kind == _ZIP64_ID for kind, _ in extra)
    # Where a descriptor follows, sums and sizes are left at 0 here.
    blank = (0, 0, 0)
    if (crc, stored, size) != blank or not record.described:
        known = {(record.crc, record.size, record.size), (record.crc, BIG, BIG)}
        if (crc, stored, size) not in (known if not record.described else known | {blank}):
            return "and the directory state different sums or sizes"
    padding = [content for kind, content in extra if kind == _PADDING_ID]
    if not padding:
        return None
    if any(content.strip(_PADDING) for content in padding):
        return "is padded with other bytes than torch writes"
    if (version, time, date) != (0, 0, 0) and not wide:
        return "has a version or a time, which torch leaves at 0"
    return None


def _extra_fields(raw: bytes) -> Iterator[tuple[int | None, bytes]]:
    """Id and content of every extra field; the id of one that is cut is None."""
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
    small = struct.pack("<III", record.crc, record.size & 0xFFFFFFFF, record.size & 0xFFFFFFFF)
    large = struct.pack("<IQQ", record.crc, record.size, record.size)
    for form in (DESCRIPTOR_MAGIC + large, DESCRIPTOR_MAGIC + small, large, small):
        if raw.startswith(form):
            return len(form)
    return None

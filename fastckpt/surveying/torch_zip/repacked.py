"""A damaged ``.pt`` that was packed again with compression: what its records become, in the form that torch writes.

Everything else then reads this form: each record with the CRC-32 that is stated
for it, whether it matches or not, and with a directory if the file has one. What
cannot be inflated any more is zeros from there on, which no CRC-32 proves.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Final, NamedTuple

from fastckpt.findings import Finding, Kind
from fastckpt.foreign.deflated import (
    inflate_if_whole,
    is_deflated,
    most_inflated,
    read_instead_of,
    require_growth,
    too_large,
)
from fastckpt.foreign.zip_account import unaccounted
from fastckpt.io.part import Part
from fastckpt.io.source import Source
from fastckpt.io.unreadable import read_there
from fastckpt.layout.zip_bytes import descriptor, directory_row, end_records, local_header
from fastckpt.layout.zip_layout import DESCRIPTOR_MAGIC, LOCAL_HEADER, DirectoryEntry, LocalHeader, next_place
from fastckpt.surveying.torch_zip.archives import find_archives, holds_records
from fastckpt.surveying.torch_zip.evidence import SHORT_END, local_header_at, read_directory, search_local_headers

_STORED: Final = 0
_DEFLATED: Final = 8
_METHODS: Final = (_STORED, _DEFLATED)
"""The numbers that zip gives to them."""
_PADDING: Final = b"FB"
"""The extra field of torch's own local headers: a record with one was not packed again."""
_PIECE: Final = 2**18
_READ_AGAIN: Final = 4
"""How often a byte of the file is read at most: by a damaged or hostile directory records can overlap."""


class _Record(NamedTuple):
    """A record of the file.

    Attributes:
        name: Its name.
        header, data: Where its local header and its bytes begin in the archive.
        method: How it is packed.
        full: How many bytes it becomes; None if nothing states it.
        listed: The CRC-32 in the directory; None without an entry.
        near: The CRC-32 in the local header; None if that has none.
    """

    name: str
    header: int
    data: int
    method: int
    full: int | None
    listed: int | None
    near: int | None


class _Became(NamedTuple):
    """What a record became: so many bytes, whether that is all of it, and where its own bytes ended."""

    size: int
    complete: bool
    end: int


@dataclass(slots=True)
class Form:
    """The form that is read in place of a file.

    Attributes:
        begins: Where each record begins in it, ascending, and last what stands behind them.
        ranges: Where the same begin in the file, and how many bytes they have there.
        findings: What stands beside the archive.
        failure: Why the file cannot be read as a whole one.
    """

    begins: list[int] = field(default_factory=list)
    ranges: list[tuple[int, int]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    failure: Finding | None = None

    def in_file(self, findings: Sequence[Finding]) -> list[Finding]:
        """The same findings by the records of the file that they are about."""
        moved = list(self.findings)
        for finding in findings:
            number = max(bisect_right(self.begins, finding.offset) - 1, 0)
            offset, size = self.ranges[number] if self.ranges else (0, 0)
            moved.append(replace(finding, offset=offset, size=size if finding.size else 0))
        if self.failure is not None and all(finding.kind is Kind.UNPROVEN for finding in moved):
            moved.append(self.failure)  # What is in no tensor, and does not keep any from being read.
        return moved


def inflate_what_stands(source: Source) -> Form | None:
    """Let a file that is packed be read in the form that torch writes, also where it is damaged; None of other files.

    Raises:
        UnsupportedStateError: It becomes far larger, as a zip bomb does.
        OutOfSpaceError, CheckpointIOError: There is no room for it, or it cannot be read.
    """
    failure = inflate_if_whole(source)
    if source.has_other_form or not _may_be_packed(source):
        return None
    parts = find_archives(source)
    packed = [part for part in parts if _is_packed(part)]
    others = [part for part in parts if part not in packed]
    if len(packed) != 1 or any(map(holds_records, others)):
        return None
    (part,) = packed
    form = Form()
    form.findings += [f for other in others for f in unaccounted(other.begin, other.begin + other.size, "beside it")]
    if failure is not None:
        at = min(failure.offset or 0, source.size)
        form.failure = Finding(Kind.ROTTED, failure.message, at, 0, loss=False)
    with read_instead_of(source) as there:
        _write(part, there, form)
    return form


# --- what there is ------------------------------------------------------------------


def _may_be_packed(source: Source) -> bool:
    """Asked before the archives of a file are looked for, which may take to read all of it."""
    directory = read_directory(source)
    listed = is_deflated((entry.name, entry.method == _DEFLATED) for entry in directory.entries.values())
    return listed or (not directory.is_whole and _begins_packed(source))


def _is_packed(part: Part) -> bool:
    directory = read_directory(part)
    listed = is_deflated((entry.name, is_deflated_there(part, entry)) for entry in directory.entries.values())
    return listed or (not directory.is_whole and _begins_packed(part))


def _begins_packed(source: Source) -> bool:
    """Whether the first pickle or storage that has a local header is deflated, and not by torch."""
    for at, header in search_local_headers(source, methods=_METHODS):
        if is_deflated([(header.name, True)]):
            return header.method == _DEFLATED and not _is_padded(source, at, header)
    return False


def is_deflated_there(part: Part, entry: DirectoryEntry) -> bool:
    """Whether directory and local header say so: one alone is damaged."""
    header = local_header_at(part, entry.header) if entry.method == _DEFLATED else None
    return header is not None and header.method == _DEFLATED


def _is_padded(source: Source, at: int, header: LocalHeader) -> bool:
    begin = at + LOCAL_HEADER.size + len(header.name.encode())
    return read_there(source, begin, max(header.data - begin, 0)).startswith(_PADDING)


def _records(part: Part) -> tuple[list[_Record], bool]:
    """The records in the order in which they stand, and whether the directory is whole."""
    directory = read_directory(part)
    whole = directory.is_whole
    entries = [entry for entry in directory.entries.values() if not entry.name.endswith("/")]
    heads = {entry.name: local_header_at(part, entry.header) for entry in entries}
    there: list[tuple[int, LocalHeader]] = []
    if not whole or not all(head is not None and head.name == name for name, head in heads.items()):
        there = list(search_local_headers(part, methods=_METHODS))
    named: dict[str, list[tuple[int, LocalHeader]]] = {}
    for at, head in there:
        named.setdefault(head.name, []).append((at, head))
    found = []
    for entry in entries:
        place, own = entry.header, heads[entry.name]
        if (own is None or own.name != entry.name) and len(named.get(entry.name, ())) == 1:
            place, own = named[entry.name][0]  # Bytes were put in or taken out in front of it.
        found.append(_listed(part, entry, place, own))
    known = {record.header for record in found}
    for at, head in there if not whole else ():
        if at not in known and not head.name.endswith("/"):
            found.append(_Record(head.name, at, head.data, head.method, *_stated(head)))
    return sorted(found, key=lambda record: record.header), whole


def _listed(part: Part, entry: DirectoryEntry, at: int, head: LocalHeader | None) -> _Record:
    if head is not None and head.name == entry.name:
        return _Record(entry.name, at, head.data, entry.method, entry.size, entry.crc, _stated(head)[2])
    size = LOCAL_HEADER.size + len(entry.name.encode())
    raw = read_there(part, at, LOCAL_HEADER.size)
    extra = LOCAL_HEADER.unpack(raw)[10] if len(raw) == LOCAL_HEADER.size else 0
    return _Record(entry.name, at, at + size + extra, entry.method, entry.size, entry.crc, None)


def _stated(header: LocalHeader) -> tuple[int | None, None, int | None]:
    if header.has_descriptor:
        return None, None, None
    return header.size, None, header.crc


# --- what it becomes ----------------------------------------------------------------


def _write(part: Part, there: IO[bytes], form: Form) -> None:
    records, whole = _records(part)
    stops = [*(record.header for record in records[1:]), part.size]
    rows = bytearray()
    at = count = 0
    left, unread = most_inflated(part.base), _READ_AGAIN * part.size
    for record, stop in zip(records, stops, strict=True):
        # A size that no record of this file can have is a damaged one.
        full = record.full if record.full is not None and record.full <= left else None
        place = next_place(at, record.name, full or 0)
        there.seek(place.data)
        became = _inflate(part, record._replace(full=full), there, stop=min(stop, record.header + unread), left=left)
        unread -= became.end - record.header
        if record.method == _DEFLATED:
            require_growth(part.base, record.name, became.end - record.data, became.size)
        cut = not whole and not became.complete and became.end >= part.size
        if full is None and not became.complete and not cut:
            continue  # How large it was is not known, so nothing can stand for the rest of it.
        size = became.size if full is None or cut else full
        left -= size
        crc = _crc_behind(part, record, became)
        form.begins.append(at)
        form.ranges.append((part.begin + record.header, stop - record.header))
        behind = b"" if crc is None or cut else descriptor(place, size, crc)
        there.seek(place.header)
        there.write(local_header(record.name, place, size, described=crc is not None))
        there.seek(place.data + size)
        there.write(behind)
        at = place.data + size + len(behind)
        there.truncate(at)
        count += 1
        if record.listed is not None:
            rows += directory_row(record.name, place, size, record.listed)
    if whole:
        there.seek(at)
        there.write(bytes(rows) + end_records(count, len(rows), at))
    form.begins.append(at if whole else at - SHORT_END)
    form.ranges.append((max(part.begin + part.size - SHORT_END, 0), SHORT_END))


def _inflate(part: Part, record: _Record, there: IO[bytes], *, stop: int, left: int) -> _Became:
    """Write what a record becomes, up to where it cannot be inflated. Raises UnsupportedStateError for a zip bomb."""
    size, end = 0, record.data
    if record.method == _STORED:
        for piece in _pieces(part, record.data, min(record.data + (record.full or 0), stop)):
            there.write(piece)
            size += len(piece)
        return _Became(size, size == record.full, record.data + size)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    most = left if record.full is None else record.full
    for piece in _pieces(part, record.data, stop):
        rest = piece
        while rest and not inflater.eof and size <= most:
            try:
                out = inflater.decompress(rest, _PIECE)
            except zlib.error:
                return _Became(size, False, end)
            rest = inflater.unconsumed_tail
            there.write(out[: most - size])
            size += len(out)
        if size > left:
            raise too_large(part.base, size)
        end += len(piece) - len(rest) - len(inflater.unused_data)
        if inflater.eof or size > most:
            break
    complete = inflater.eof and (record.full is None or size == record.full)
    return _Became(min(size, most), complete, end)


def _pieces(part: Part, begin: int, end: int) -> Iterator[bytes]:
    for at in range(begin, end, _PIECE):
        piece = read_there(part, at, min(_PIECE, end - at))
        if not piece:
            return
        yield piece


def _crc_behind(part: Part, record: _Record, became: _Became) -> int | None:
    """The CRC-32 that is stated beside a record; where none is, that of the directory; None without any."""
    if record.near is not None:
        return record.near
    raw = read_there(part, became.end, 16)
    raw = raw.removeprefix(DESCRIPTOR_MAGIC)
    sizes = (became.end - record.data, became.size)
    if became.complete and tuple(int.from_bytes(raw[at : at + 4], "little") for at in (4, 8)) == sizes:
        return int.from_bytes(raw[:4], "little")
    return record.listed

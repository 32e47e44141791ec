"""Where torch puts the records of its zip archive: a matter of arithmetic.

torch writes every record stored, with a local header in front whose extra
field fills up to the alignment, and a descriptor behind. So names and sizes
alone give all offsets, without any directory; what stands at these places is
then evidence for or against.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from fastckpt.layout.blocks import align

LOCAL_MAGIC: Final = b"PK\x03\x04"
DESCRIPTOR_MAGIC: Final = b"PK\x07\x08"
CENTRAL_MAGIC: Final = b"PK\x01\x02"
END64_MAGIC: Final = b"PK\x06\x06"
END_MAGIC: Final = b"PK\x05\x06"
END_SIZE: Final = 98
"""Bytes of the zip64 end record, its locator and the end record."""

LOCAL_HEADER: Final = struct.Struct("<4sHHHHHIIIHH")
"""Signature, version, flags, method, time, date, CRC, two sizes, name and extra length."""
CENTRAL_HEADER: Final = struct.Struct("<4sHHHHHHIIIHHHHHII")
SALVAGE_RECORD: Final = ".data/salvage.json"
"""How a file that salvage wrote came to be; torch does not look at it."""
ALIGNMENT: Final = 64
BIG: Final = 0xFFFFFFFF
"""From this size or offset on, torch writes 64-bit fields (zip64)."""

SMALL_RECORDS: Final = (
    ((".format_version", 1), (".storage_alignment", 2), ("byteorder", 6)),
    (("byteorder", 6),),
    (),
    ((".format_version", 1), ("byteorder", 6)),
    ((".format_version", 1), (".storage_alignment", 3), ("byteorder", 6)),
    # On big-endian machines.
    ((".format_version", 1), (".storage_alignment", 2), ("byteorder", 3)),
    (("byteorder", 3),),
    ((".format_version", 1), ("byteorder", 3)),
    ((".format_version", 1), (".storage_alignment", 3), ("byteorder", 3)),
)
"""What stands between data.pkl and the first storage: torch 2.7 on, 2.1 on, 1.6 on, and variants; sizes in bytes."""


class Place(NamedTuple):
    """A record: where its local header begins, where its bytes do, and how many descriptor bytes follow those."""

    header: int
    data: int
    descriptor: int


def descriptor_size(header: int, size: int) -> int:
    """Bytes of the descriptor of a record whose local header begins at ``header``; empty records have none."""
    return 0 if not size else 24 if max(size, header) >= BIG else 16


def _least_header(header: int, name: str, size: int) -> int:
    """Bytes of a local header before it is filled up to the alignment."""
    big_size, big_offset = size >= BIG, header >= BIG
    extra64 = 4 + 16 * big_size + 8 * big_offset if big_size or big_offset else 0
    return LOCAL_HEADER.size + len(name.encode()) + extra64 + 4


def next_place(header: int, name: str, size: int, alignment: int = ALIGNMENT) -> Place:
    """The place of a record whose local header begins at ``header``."""
    data = align(header + _least_header(header, name, size), alignment)
    return Place(header, data, descriptor_size(header, size))


def place_before(after: Place, after_name: str, after_size: int, name: str, size: int) -> Place | None:
    """The place of the record in front of one whose data is at ``after.data``; None if none fits there.

    Its own header is somewhere in front of it: only the record before says where. So of ``after`` too only the
    data counts.
    """
    header = after.data - _least_header(after.data, after_name, after_size)
    width = descriptor_size(header, size)
    data = (header - width - size) // ALIGNMENT * ALIGNMENT
    if data < 0 or next_place(data + size + width, after_name, after_size).data != after.data:
        return None
    return Place(max(data - _least_header(data, name, size), 0), data, width)


def end_of(place: Place, size: int) -> int:
    """First byte after a record and its descriptor: where the next local header stands."""
    return place.data + size + place.descriptor


def places(start: int, records: Iterable[tuple[str, int]], alignment: int = ALIGNMENT) -> Iterator[Place]:
    """The places of records of these names and sizes that follow one another from ``start``."""
    at = start
    for name, size in records:
        place = next_place(at, name, size, alignment)
        yield place
        at = end_of(place, size)


def layouts(start: int, prefix: str, storages: Sequence[tuple[str, int]]) -> Iterator[dict[str, Place]]:
    """The ways in which torch may have laid out ``storages`` (key and size, in order of first use), likely ones first.

    Older versions wrote them in the order of their keys as text.
    """
    by_text = sorted(storages)
    orders = [storages] if by_text == list(storages) else [storages, by_text]
    for order in orders:
        for small in SMALL_RECORDS:
            names = [(f"{prefix}/{name}", size) for name, size in small]
            names += [(f"{prefix}/data/{key}", size) for key, size in order]
            found = list(places(start, names, ALIGNMENT))[len(small) :]
            yield dict(zip((key for key, _ in order), found, strict=True))


class LocalHeader(NamedTuple):
    """What a local header says."""

    name: str
    data: int
    flags: int
    method: int
    crc: int
    size: int

    @property
    def has_descriptor(self) -> bool:
        """Whether CRC-32 and size stand behind the data instead of in here."""
        return bool(self.flags & 8)


def parse_local(raw: bytes, at: int) -> LocalHeader | None:
    """The local header that ``raw`` begins with, which stands at ``at`` in the file; None if it is none."""
    if len(raw) < LOCAL_HEADER.size:
        return None
    magic, _, flags, method, _, _, crc, _, size, name_size, extra_size = LOCAL_HEADER.unpack_from(raw)
    name = raw[LOCAL_HEADER.size : LOCAL_HEADER.size + name_size]
    if magic != LOCAL_MAGIC or len(name) != name_size:
        return None
    data = at + LOCAL_HEADER.size + name_size + extra_size
    return LocalHeader(name.decode("utf-8", "replace"), data, flags, method, crc, size)


class DirectoryEntry(NamedTuple):
    """What the central directory says about a record."""

    name: str
    header: int
    size: int
    crc: int
    method: int


def parse_directory(raw: bytes) -> Iterator[DirectoryEntry]:
    """The entries of a central directory; damaged ones are passed over."""
    at = 0
    while True:
        at = raw.find(CENTRAL_MAGIC, at)
        if at < 0 or at + CENTRAL_HEADER.size > len(raw):
            return
        fields = CENTRAL_HEADER.unpack_from(raw, at)
        method, crc, stored, size, name_size, extra_size, comment_size = fields[4], *fields[7:13]
        header = fields[16]
        names_at = at + CENTRAL_HEADER.size
        end = names_at + name_size + extra_size + comment_size
        if end > len(raw) or (end < len(raw) and raw[end : end + 2] != b"PK"):
            at += 4
            continue
        name = raw[names_at : names_at + name_size].decode("utf-8", "replace")
        if BIG in (stored, size, header):
            size, header = _wide(raw[names_at + name_size :][:extra_size], size, stored, header)
        yield DirectoryEntry(name, header, size, crc, method)
        at = end


def _wide(extra: bytes, size: int, stored: int, header: int) -> tuple[int, int]:
    """Size and header offset out of the zip64 extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            numbers = [n for (n,) in struct.iter_unpack("<Q", extra[at + 4 : at + 4 + length // 8 * 8])]
            wide = iter(numbers)
            size = next(wide, size) if size == BIG else size
            if stored == BIG:
                next(wide, None)
            header = next(wide, header) if header == BIG else header
            break
        at += 4 + length
    return size, header

"""What stands around the records of a zip archive as torch writes it: headers, descriptors, the directory."""

from __future__ import annotations

import struct
from typing import Final

from fastckpt.layout.zip_layout import (
    BIG,
    CENTRAL_HEADER,
    CENTRAL_MAGIC,
    DESCRIPTOR_MAGIC,
    END64_MAGIC,
    END_MAGIC,
    LOCAL_HEADER,
    LOCAL_MAGIC,
    Place,
)

_FLAGS: Final = 0x0808
"""A descriptor follows the data; names are UTF-8."""
_DESCRIBED: Final = 8
_ZIP64_KIND: Final = 1
_PADDING_KIND: Final = 0x4246


def local_header(name: str, place: Place, size: int, *, described: bool = True) -> bytes:
    """What stands in front of a record: as long as its place says, filled up with padding."""
    raw, extra = name.encode(), _zip64(place, size)
    rest = place.data - place.header - LOCAL_HEADER.size - len(raw) - len(extra) - 4
    assert rest >= 0
    extra += struct.pack("<HH", _PADDING_KIND, rest) + b"Z" * rest
    flags = _FLAGS if size and described else _FLAGS & ~_DESCRIBED
    return LOCAL_HEADER.pack(LOCAL_MAGIC, 0, flags, 0, 0, 0, 0, 0, 0, len(raw), len(extra)) + raw + extra


def descriptor(place: Place, size: int, crc: int) -> bytes:
    """What stands behind a record; nothing behind an empty one."""
    if not size:
        return b""
    sizes = "<QQ" if place.descriptor == 24 else "<II"
    return DESCRIPTOR_MAGIC + struct.pack("<I", crc) + struct.pack(sizes, size, size)


def directory_row(name: str, place: Place, size: int, crc: int) -> bytes:
    """What the directory says of a record."""
    raw, extra = name.encode(), _zip64(place, size)
    flags = _FLAGS if size else _FLAGS & ~_DESCRIBED
    stated, header = min(size, BIG), min(place.header, BIG)
    fields = (CENTRAL_MAGIC, 0, 0, flags, 0, 0, 0, crc, stated, stated, len(raw), len(extra), 0, 0, 0, 0, header)
    return CENTRAL_HEADER.pack(*fields) + raw + extra


def end_records(count: int, size: int, at: int) -> bytes:
    """The zip64 end record, its locator and the end record, behind ``count`` rows in ``size`` bytes from ``at`` on."""
    end64 = END64_MAGIC + struct.pack("<QHHIIQQQQ", 44, 0x31E, 0x2D, 0, 0, count, count, size, at)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, at + size, 1)
    short = min(count, 0xFFFF)
    end = END_MAGIC + struct.pack("<HHHHIIH", 0, 0, short, short, min(size, BIG), min(at, BIG), 0)
    return end64 + locator + end


def _zip64(place: Place, size: int) -> bytes:
    wide = [size, size] if size >= BIG else []
    wide += [place.header] if place.header >= BIG else []
    return struct.pack(f"<HH{len(wide)}Q", _ZIP64_KIND, 8 * len(wide), *wide) if wide else b""

"""What a damaged zip archive still says: local headers, descriptors, the central directory."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from fastckpt.errors import CheckpointIOError, DamagedError
from fastckpt.io.source import Source
from fastckpt.salvaging.zip_layout import (
    CENTRAL_MAGIC,
    DESCRIPTOR_MAGIC,
    END64_MAGIC,
    END_MAGIC,
    LOCAL_HEADER,
    DirectoryEntry,
    LocalHeader,
    parse_directory,
    parse_local,
)

WINDOW: Final = 8 * 2**20
"""Bytes looked at in one piece when the file is searched."""
MAX_DIRECTORY: Final = 128 * 2**20
MAX_NAME: Final = 1024
MAX_FOUND: Final = 1_000_000
"""Local headers that a search gives back; a checkpoint has some thousands."""


def read_there(source: Source, offset: int, size: int) -> bytes:
    """The bytes of the range that are in the file and can be read; fewer than ``size`` at its end."""
    if offset < 0 or offset >= source.size:
        return b""
    try:
        return source.read(offset, min(size, source.size - offset))
    except (CheckpointIOError, DamagedError):
        return b""


def local_header_at(source: Source, at: int) -> LocalHeader | None:
    """The local header at an offset; None if there is none."""
    raw = read_there(source, at, LOCAL_HEADER.size)
    if len(raw) < LOCAL_HEADER.size:
        return None
    name_size = LOCAL_HEADER.unpack(raw)[9]
    if name_size > MAX_NAME:
        return None
    return parse_local(raw + read_there(source, at + len(raw), name_size), at)


class Descriptor(NamedTuple):
    """What stands behind a record.

    Attributes:
        crc: The CRC-32; 0 if neither signature nor sizes are right, so that overwritten bytes are never taken for one.
        signed: Whether signature and sizes are both right.
        raw: All that stands there.
    """

    crc: int
    signed: bool
    raw: bytes


def descriptor_at(source: Source, at: int, size: int, width: int) -> Descriptor | None:
    """The descriptor of a record of ``size`` bytes, ``width`` bytes long; None if it is cut."""
    raw = read_there(source, at, width)
    if len(raw) < 8:
        return None
    magic, crc = struct.unpack_from("<4sI", raw)
    sizes = struct.pack("<QQ", size, size) if width == 24 else struct.pack("<II", size & 0xFFFFFFFF, size & 0xFFFFFFFF)
    has_sizes = raw[8:] == sizes
    has_magic = magic == DESCRIPTOR_MAGIC
    # A run of equal bytes can have just these bytes as its CRC-32: four times FF does.
    return Descriptor(crc if has_magic or has_sizes else 0, has_magic and has_sizes, raw)


def read_directory(source: Source) -> tuple[dict[str, DirectoryEntry], bool]:
    """The entries of the central directory by name, as far as they stand, and whether its end is where it should be."""
    tail_size = min(source.size, 70_000)
    tail = read_there(source, source.size - tail_size, tail_size)
    base = source.size - tail_size
    whole = tail[-22:-18] == END_MAGIC
    start = None
    at = tail.rfind(END64_MAGIC)
    if at >= 0 and at + 56 <= len(tail):
        start = struct.unpack_from("<Q", tail, at + 48)[0]
    else:
        at = tail.rfind(END_MAGIC)
        if at >= 0 and at + 22 <= len(tail):
            start = struct.unpack_from("<I", tail, at + 16)[0]
    if start is None or read_there(source, start, 4) != CENTRAL_MAGIC or source.size - start > MAX_DIRECTORY:
        # Its end is lost: what of it lies in the last part of the file is found by its signature.
        start = max(base - 2**20, 0)
        whole = False
    raw = read_there(source, start, min(source.size - start, MAX_DIRECTORY))
    entries: dict[str, DirectoryEntry] = {}
    for entry in parse_directory(raw):
        entries.setdefault(entry.name, entry)
    return entries, whole


_LOCAL: Final = re.compile(re.escape(b"PK\x03\x04"))


def search_local_headers(source: Source, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, LocalHeader]]:
    """Every local header of a stored record ``*/data/*`` (or another record of torch) in the file, by its signature."""
    found = 0
    at = start
    end = source.size if stop is None else stop
    while at < end and found < MAX_FOUND:
        window = read_there(source, at, min(WINDOW, end - at))
        if not window:
            at += WINDOW
            continue
        for match in _LOCAL.finditer(window):
            raw = window[match.start() : match.start() + LOCAL_HEADER.size + MAX_NAME]
            header = parse_local(raw, at + match.start())
            if header is None:
                header = local_header_at(source, at + match.start())
            if header is not None and header.method == 0 and "/" in header.name and header.name.isprintable():
                found += 1
                yield at + match.start(), header
        if at + len(window) >= end:
            return
        # A signature may lie across the border.
        at += len(window) - 3

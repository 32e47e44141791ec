"""Changes to a ``.pt`` that leave every checksum and size in it right, as a program makes them and no accident does."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from typing import NamedTuple


class _Record(NamedTuple):
    """Where a record's name, bytes and row of the directory begin."""

    name_at: int
    data: int
    size: int
    row: int


def _record(raw: bytes | bytearray, name: str) -> _Record:
    archive = zipfile.ZipFile(io.BytesIO(bytes(raw)))
    info = next(info for info in archive.infolist() if info.filename.partition("/")[2] == name)
    at = info.header_offset
    name_size, extra_size = struct.unpack_from("<HH", raw, at + 26)
    row = bytes(raw).index(info.filename.encode(), archive.start_dir) - 46
    return _Record(at + 30, at + 30 + name_size + extra_size, info.file_size, row)


def put_content(raw: bytearray, name: str, content: bytes) -> None:
    """Other bytes of the same length in a record."""
    found = _record(raw, name)
    assert len(content) == found.size
    crc = struct.pack("<I", zlib.crc32(content))
    raw[found.data : found.data + found.size] = content
    raw[found.data + found.size + 4 : found.data + found.size + 8] = crc
    raw[found.row + 16 : found.row + 20] = crc


def content_of(raw: bytes | bytearray, name: str) -> bytes:
    """The bytes of a record."""
    found = _record(raw, name)
    return bytes(raw[found.data : found.data + found.size])


def swap_contents(raw: bytearray, one: str, other: str) -> None:
    """Two records of the same size with each other's bytes."""
    first, second = content_of(raw, one), content_of(raw, other)
    put_content(raw, one, second)
    put_content(raw, other, first)


def swap_names(raw: bytearray, one: str, other: str) -> None:
    """Two records with each other's name, in their headers and in the directory."""
    places = [_record(raw, name) for name in (one, other)]
    folder = raw[places[0].name_at : places[0].data].partition(b"/")[0]
    for place, name in zip(places, (other, one), strict=True):
        text = folder + b"/" + name.encode()
        for at in (place.name_at, place.row + 46):
            raw[at : at + len(text)] = text


def pack_again(raw: bytes, *, backwards: bool = False) -> bytes:
    """The same records, packed by another program; in the order of their names turned round, if asked for."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(buffer, "w") as new:
        infos = old.infolist()
        for info in sorted(infos, key=lambda info: info.filename, reverse=True) if backwards else infos:
            new.writestr(info.filename, old.read(info))
    return buffer.getvalue()

"""Writing a ``.pt``: the zip archive that torch.save makes, streamed, with a CRC-32 on every record."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from fastckpt.foreign.serialization_id import serialization_id
from fastckpt.foreign.zip_layout import (
    BIG,
    CENTRAL_HEADER,
    CENTRAL_MAGIC,
    DESCRIPTOR_MAGIC,
    END64_MAGIC,
    END_MAGIC,
    END_SIZE,
    LOCAL_HEADER,
    LOCAL_MAGIC,
    Place,
    end_of,
    next_place,
)
from fastckpt.io.commit import Commit

_FLAGS: Final = 0x0808
"""A descriptor follows the data; names are UTF-8."""
_ZIP64_KIND: Final = 1
_ID_SIZE: Final = 40
_PADDING_KIND: Final = 0x4246


Fill = Callable[[Commit, Sequence[tuple[int, int]]], Sequence[int]]
"""Writes the storages to their places (offset in the file, and size), and returns the CRC-32 of each."""


class _Record(NamedTuple):
    name: str
    size: int
    place: Place
    data: bytes | None
    storage: int = -1


def write_torch(
    path: str | os.PathLike[str],
    pickle: bytes,
    storage_sizes: Sequence[int],
    fill: Fill,
    *,
    durable: bool,
    keys: Sequence[str] | None = None,
    note: bytes | None = None,
) -> None:
    """Write a torch zip archive.

    The bytes are those that torch.save writes for the same pickle, storages and name.

    Args:
        path: The file; an existing one is replaced in the end.
        pickle: ``data.pkl``.
        storage_sizes: Sizes of the storages in bytes.
        fill: Writes them.
        durable: Return only when the file survives a power cut.
        keys: Under which keys ``pickle`` names the storages; None if by their numbers.
        note: JSON text about how the file came to be, kept in a record that torch ignores.

    Raises:
        OutOfSpaceError, CheckpointIOError: The old file, if any, is untouched.
        DamagedError: A source changed meanwhile.
    """
    keys = [str(number) for number in range(len(storage_sizes))] if keys is None else keys
    records = list(_plan(archive_name(path), pickle, list(zip(keys, storage_sizes, strict=True)), note))
    last = records[-1]
    directory_at = end_of(last.place, last.size)
    size = directory_at + sum(len(_central(record, 0)) for record in records) + END_SIZE
    with Commit(path, durable=durable, reserve=size) as sink:
        sink.preallocate(size)
        stored = [record for record in records if record.storage >= 0]
        places = [(record.place.data, record.size) for record in stored]
        by_storage = {record.storage: crc for record, crc in zip(stored, fill(sink, places), strict=True)}
        directory = bytearray()
        crcs = [zlib.crc32(r.data) if r.data is not None else by_storage[r.storage] for r in records[:-1]]
        identity = serialization_id(
            [record.name.partition("/")[2] for record in records[:-1]],
            [crc for record, crc in zip(records[:-1], crcs, strict=True) if record.size],
        )
        records[-1] = records[-1]._replace(data=identity)
        for record, crc in zip(records, [*crcs, zlib.crc32(identity)], strict=True):
            _write_record(sink, record, crc)
            directory += _central(record, crc)
        sink.write(directory_at, bytes(directory) + _end(len(records), len(directory), directory_at))
        sink.finish(directory_at + len(directory) + END_SIZE)


def archive_name(path: str | os.PathLike[str]) -> str:
    """The top directory that torch.save gives an archive of this name: the file's stem, as far as it is ASCII."""
    path = os.fsdecode(path)
    stem, dot, _ = os.path.basename(path).rpartition(".")
    return (stem if dot else os.path.basename(path)) or "archive" if path.isascii() else "archive"


def _plan(prefix: str, pickle: bytes, storages: Sequence[tuple[str, int]], note: bytes | None) -> Iterator[_Record]:
    small: list[tuple[str, bytes]] = [
        ("data.pkl", pickle),
        (".format_version", b"1"),
        (".storage_alignment", b"64"),
        ("byteorder", b"little"),
    ]
    items: list[tuple[str, int, bytes | None, int]] = [(name, len(data), data, -1) for name, data in small]
    items += [(f"data/{key}", size, None, number) for number, (key, size) in enumerate(storages)]
    items += [("version", 2, b"3\n", -1)]
    if note is not None:
        items.append((".data/salvage.json", len(note), note, -1))
    items.append((".data/serialization_id", _ID_SIZE, None, -1))
    at = 0
    for name, size, data, storage in items:
        place = next_place(at, f"{prefix}/{name}", size)
        yield _Record(f"{prefix}/{name}", size, place, data, storage)
        at = end_of(place, size)


def _write_record(sink: Commit, record: _Record, crc: int) -> None:
    name = record.name.encode("ascii")
    extra = _zip64(record)
    rest = record.place.data - record.place.header - LOCAL_HEADER.size - len(name) - len(extra) - 4
    extra += struct.pack("<HH", _PADDING_KIND, rest) + b"Z" * rest
    assert rest >= 0
    flags = _FLAGS if record.size else _FLAGS & ~8
    header = LOCAL_HEADER.pack(LOCAL_MAGIC, 0, flags, 0, 0, 0, 0, 0, 0, len(name), len(extra))
    sink.write(record.place.header, header + name + extra + (record.data or b""))
    if record.size:
        sizes = "<QQ" if record.place.descriptor == 24 else "<II"
        descriptor = DESCRIPTOR_MAGIC + struct.pack("<I", crc) + struct.pack(sizes, record.size, record.size)
        sink.write(record.place.data + record.size, descriptor)


def _zip64(record: _Record) -> bytes:
    wide = [record.size, record.size] if record.size >= BIG else []
    wide += [record.place.header] if record.place.header >= BIG else []
    return struct.pack(f"<HH{len(wide)}Q", _ZIP64_KIND, 8 * len(wide), *wide) if wide else b""


def _central(record: _Record, crc: int) -> bytes:
    name, extra = record.name.encode("ascii"), _zip64(record)
    size, header = min(record.size, BIG), min(record.place.header, BIG)
    flags = _FLAGS if record.size else _FLAGS & ~8
    fields = (CENTRAL_MAGIC, 0, 0, flags, 0, 0, 0, crc, size, size, len(name), len(extra), 0, 0, 0, 0, header)
    return CENTRAL_HEADER.pack(*fields) + name + extra


def _end(count: int, size: int, at: int) -> bytes:
    """The zip64 end record, its locator and the end record."""
    end64 = END64_MAGIC + struct.pack("<QHHIIQQQQ", 44, 0x31E, 0x2D, 0, 0, count, count, size, at)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, at + size, 1)
    short = min(count, 0xFFFF)
    end = END_MAGIC + struct.pack("<HHHHIIH", 0, 0, short, short, min(size, BIG), min(at, BIG), 0)
    return end64 + locator + end

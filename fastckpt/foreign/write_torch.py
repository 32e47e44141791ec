"""Writing a ``.pt``: the zip archive that torch.save makes, streamed, with a CRC-32 on every record."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from fastckpt.foreign.last_record import ID_RECORD, ID_SIZE
from fastckpt.foreign.serialization_id import serialization_id
from fastckpt.io.commit import Commit
from fastckpt.layout.zip_bytes import descriptor, directory_row, end_records, local_header
from fastckpt.layout.zip_layout import END_SIZE, SALVAGE_RECORD, Place, end_of, next_place

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
    size = directory_at + sum(len(directory_row(r.name, r.place, r.size, 0)) for r in records) + END_SIZE
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
            sink.write(record.place.header, local_header(record.name, record.place, record.size) + (record.data or b""))
            sink.write(record.place.data + record.size, descriptor(record.place, record.size, crc))
            directory += directory_row(record.name, record.place, record.size, crc)
        sink.write(directory_at, bytes(directory) + end_records(len(records), len(directory), directory_at))
        sink.finish(directory_at + len(directory) + END_SIZE)


SALVAGED: Final = ".salvaged"
"""What salvage puts behind the stem of a damaged file in the name of the new one, until that is in its place."""


def archive_name(path: str | os.PathLike[str]) -> str:
    """The top directory that torch.save gives an archive of this name: the file's stem, as far as it is ASCII.

    Of a file that is salvaged, the stem of the damaged one, which gives its name to this one in the end.
    """
    path = os.fsdecode(path)
    stem, dot, _ = os.path.basename(path).rpartition(".")
    stem = (stem if dot else os.path.basename(path)).removesuffix(SALVAGED)
    return stem or "archive" if path.isascii() else "archive"


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
        items.append((SALVAGE_RECORD, len(note), note, -1))
    items.append((ID_RECORD, ID_SIZE, None, -1))
    at = 0
    for name, size, data, storage in items:
        place = next_place(at, f"{prefix}/{name}", size)
        yield _Record(f"{prefix}/{name}", size, place, data, storage)
        at = end_of(place, size)

"""What version 1 of the format wrote in another way: SPEC.md, section "Version 1". Read only; nothing writes it.

Blocks of version 1 have a zero where later ones state their version. Their
tables have rows of fixed size, and state what follows from the rest.
"""

from __future__ import annotations

import struct
from itertools import accumulate, pairwise
from typing import Final

from fastckpt.constants import FORMAT_VERSION
from fastckpt.errors import DamagedError, UnsupportedVersionError
from fastckpt.layout.entries import EntryTable, Kind
from fastckpt.layout.places import PackedStorage, StoragePlace

_PLACE: Final = struct.Struct("<QQII")
_PACKED: Final = struct.Struct("<QQQ")
_TABLE: Final = struct.Struct("<QQQ")
_ENTRY: Final = struct.Struct("<IBBBBQII")


def stated_version(field: int) -> int:
    """The version that a manifest or record header states. Raises UnsupportedVersionError if it is not known."""
    if field not in (0, FORMAT_VERSION):
        raise UnsupportedVersionError(
            "a block has a format version that this fastckpt does not read",
            expected=f"at most {FORMAT_VERSION}",
            actual=field,
            next_step="pip install --upgrade fastckpt",
        )
    return field or 1


def decode_storage_places(table: memoryview, count: int) -> list[StoragePlace]:
    """The storage table of a manifest. Raises DamagedError."""
    if len(table) != count * _PLACE.size:
        raise DamagedError("the storage table has the wrong size", expected=count * _PLACE.size, actual=len(table))
    rows = list(_PLACE.iter_unpack(table))
    if any(zero for *_, zero in rows):
        raise DamagedError("a reserved field of the storage table is not zero")
    return [StoragePlace(nbytes, offset, record) for nbytes, offset, record, _ in rows]


def decode_storages(body: memoryview, at: int, count: int) -> tuple[list[PackedStorage], int]:
    """The storage rows of a record header, and where they end. Raises DamagedError."""
    end = at + count * _PACKED.size
    if end > len(body):
        raise DamagedError("the storage rows of a record reach beyond its header", actual=count)
    return [PackedStorage(*row) for row in _PACKED.iter_unpack(body[at:end])], end


def decode_entry_table(raw: memoryview) -> EntryTable:
    """The entry table of a manifest or record header. Raises DamagedError, UnsupportedVersionError."""
    if len(raw) < _TABLE.size:
        raise DamagedError(f"an entry table of {len(raw)} bytes is too short")
    count, dims_count, names_size = _TABLE.unpack_from(raw)
    dims_at = _TABLE.size + count * _ENTRY.size
    names_at = dims_at + dims_count * 8
    if names_at + names_size != len(raw):
        raise DamagedError("the sizes inside an entry table do not add up to its size", actual=len(raw))
    rows = list(_ENTRY.iter_unpack(raw[_TABLE.size : dims_at]))
    dims = raw[dims_at:names_at].cast("Q") if dims_count else ()
    starts = list(accumulate((2 * row[2] for row in rows), initial=0))
    ends = list(accumulate((row[6] for row in rows), initial=0))
    if starts[-1] != dims_count or ends[-1] != names_size:
        raise DamagedError("the rows of an entry table do not add up to its columns")
    if any(row[4] or row[7] for row in rows):
        raise UnsupportedVersionError("a reserved field of an entry is not zero", next_step="upgrade fastckpt")
    kinds = [
        Kind(row[1], row[3], tuple(dims[at : at + row[2]]), tuple(dims[at + row[2] : at + 2 * row[2]]))
        for at, row in zip(starts, rows, strict=False)
    ]
    text = bytes(raw[names_at:])
    return EntryTable(
        kinds,
        range(count),
        [row[0] for row in rows],
        [row[5] for row in rows],
        lambda: [text[a:b] for a, b in pairwise(ends)],
    )

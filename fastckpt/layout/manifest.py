"""The manifest: all that is needed to rebuild the state, except the bytes.

Which storages there are and in which record each lies, the entries (named
tensors), the tree that nests them, and the user's metadata. It stands twice
in a file, before the first record and after the index.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastckpt.constants import FORMAT_VERSION, MAGIC_MANIFEST, PACK_ALIGNMENT
from fastckpt.errors import DamagedError
from fastckpt.layout import version1
from fastckpt.layout.blocks import align, block_digest, require_zero, seal, unseal
from fastckpt.layout.columns import decode_column, encode_column, rows_of
from fastckpt.layout.entries import Entry, EntryTable, decode_entry_table, encode_entry_table
from fastckpt.layout.places import StoragePlace
from fastckpt.layout.tree import decode_tree

_HEAD: Final = struct.Struct("<QQQQQQQH22s")


@dataclass(slots=True)
class Manifest:
    """A decoded manifest.

    Attributes:
        storages: Place of every storage.
        entries: The named tensors, in tree order.
        tree: The nesting, still encoded (see `layout.tree`).
        metadata_tree: The user's metadata, still encoded.
        record_count: Records the file must have.
        digest: The 16-byte digest that the sealed manifest ends with.
        version: The version of the format it is written in.
    """

    storages: list[StoragePlace]
    entries: EntryTable
    tree: bytes
    metadata_tree: bytes
    record_count: int
    digest: bytes
    version: int = FORMAT_VERSION

    @property
    def metadata(self) -> dict[str, Any]:
        """The user's metadata. Raises DamagedError if it is not a dict."""
        value = decode_tree(self.metadata_tree, 0)
        if type(value) is not dict:
            raise DamagedError("the metadata is not a dict", actual=type(value).__name__)
        return value

    def checked_entries(self) -> list[Entry]:
        """All entries. Raises DamagedError unless each lies inside its storage."""
        return self.entries.checked([place.nbytes for place in self.storages])


def encode_manifest(
    storages: Sequence[StoragePlace],
    entries: Sequence[Entry],
    tree: bytes,
    metadata_tree: bytes,
    record_count: int,
) -> bytes:
    """The sealed manifest."""
    tables = (
        encode_column([place.nbytes for place in storages]) + encode_column([place.record for place in storages]),
        encode_entry_table(entries),
        tree,
        metadata_tree,
    )
    head = _HEAD.pack(len(storages), len(entries), record_count, *map(len, tables), FORMAT_VERSION, bytes(22))
    padded = (part for table in tables for part in (table, bytes(align(len(table), 8) - len(table))))
    return seal(MAGIC_MANIFEST, head, *padded)


def decode_manifest(block: bytes) -> Manifest:
    """Decode a sealed manifest.

    Raises:
        DamagedError: The digest does not match, or what it says cannot be.
        UnsupportedVersionError: It uses an element type or flag of a later version.
    """
    body = unseal(block, MAGIC_MANIFEST, what="manifest")
    storage_count, entry_count, record_count, *sizes, version, reserved = _HEAD.unpack_from(body)
    version = version1.stated_version(version)
    require_zero(reserved, what="reserved part of the manifest")
    at = _HEAD.size
    tables = []
    for size in sizes:
        if size > len(body) - at:
            raise DamagedError("the tables of the manifest reach beyond its end", expected=len(body) - at, actual=size)
        tables.append(body[at : at + size])
        end = min(align(at + size, 8), len(body))
        require_zero(body[at + size : end], what="padding in the manifest")
        at = end
    require_zero(body[at:], what="padding of the manifest")
    storage_table, entry_table, tree, metadata_tree = tables
    if version == 1:
        places = version1.decode_storage_places(storage_table, storage_count)
        entries = version1.decode_entry_table(entry_table)
    else:
        places = _decode_storage_places(storage_table, storage_count)
        entries = decode_entry_table(entry_table)
    outside = next((n for n, place in enumerate(places) if place.record >= record_count), None)
    if outside is not None:
        raise DamagedError(f"storage {outside} lies in record {places[outside].record} of {record_count}")
    if len(entries) != entry_count:
        raise DamagedError("the manifest and its entry table disagree", expected=entry_count, actual=len(entries))
    return Manifest(places, entries, bytes(tree), bytes(metadata_tree), record_count, block_digest(block), version)


def _decode_storage_places(table: memoryview, count: int) -> list[StoragePlace]:
    """Sizes and records are stored; the offsets follow, for storages fill their record one behind the other."""
    sizes, at = decode_column(table, 0, count, what="storage table")
    records, at = decode_column(table, at, count, what="storage table")
    if at != len(table):
        raise DamagedError("the storage table has the wrong size", expected=at, actual=len(table))
    ends: dict[int, int] = {}
    offsets = []
    for nbytes, record in zip(sizes, records, strict=True):
        offset = align(ends.get(record, 0), PACK_ALIGNMENT)
        ends[record] = offset + nbytes
        offsets.append(offset)
    if max(ends.values(), default=0) >> 63:
        raise DamagedError("the storages of a record do not fit 63 bits")
    return rows_of(StoragePlace, sizes, offsets, records)

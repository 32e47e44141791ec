"""The manifest: all that is needed to rebuild the state, except the bytes.

Which storages there are and in which record each lies, the entries (named
tensors), the tree that nests them, and the user's metadata. It stands twice
in a file, before the first record and after the index.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from fastckpt.constants import MAGIC_MANIFEST
from fastckpt.errors import DamagedError
from fastckpt.layout.blocks import align, block_digest, require_zero, seal, unseal
from fastckpt.layout.entries import Entry, EntryTable, check_entry, encode_entry_table
from fastckpt.layout.tree import decode_tree

_HEAD: Final = struct.Struct("<QQQQQQQ24x")
_STORAGE: Final = struct.Struct("<QQII")


class StoragePlace(NamedTuple):
    """Where a storage lies: ``nbytes`` bytes from ``offset`` on in the raw bytes of ``record``."""

    nbytes: int
    offset: int
    record: int


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
    """

    storages: list[StoragePlace]
    entries: EntryTable
    tree: bytes
    metadata_tree: bytes
    record_count: int
    digest: bytes

    @property
    def metadata(self) -> dict[str, Any]:
        """The user's metadata. Raises DamagedError if it is not a dict."""
        value = decode_tree(self.metadata_tree, 0)
        if type(value) is not dict:
            raise DamagedError("the metadata is not a dict", actual=type(value).__name__)
        return value

    def checked_entries(self) -> list[Entry]:
        """All entries. Raises DamagedError unless each lies inside its storage."""
        sizes = [place.nbytes for place in self.storages]
        entries = list(self.entries)
        for entry in entries:
            check_entry(entry, sizes)
        return entries


def encode_manifest(
    storages: Sequence[StoragePlace],
    entries: Sequence[Entry],
    tree: bytes,
    metadata_tree: bytes,
    record_count: int,
) -> bytes:
    """The sealed manifest."""
    tables = (
        b"".join(_STORAGE.pack(nbytes, offset, record, 0) for nbytes, offset, record in storages),
        encode_entry_table(entries),
        tree,
        metadata_tree,
    )
    head = _HEAD.pack(len(storages), len(entries), record_count, *(len(table) for table in tables))
    padded = (part for table in tables for part in (table, bytes(align(len(table), 8) - len(table))))
    return seal(MAGIC_MANIFEST, head, *padded)


def decode_manifest(block: bytes) -> Manifest:
    """Decode a sealed manifest.

    Raises:
        DamagedError: The digest does not match, or what it says cannot be.
        UnsupportedVersionError: It uses an element type or flag of a later version.
    """
    body = unseal(block, MAGIC_MANIFEST, what="manifest")
    storage_count, entry_count, record_count, *sizes = _HEAD.unpack_from(body)
    require_zero(body[_HEAD.size - 24 : _HEAD.size], what="reserved part of the manifest")
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
    if len(storage_table) != storage_count * _STORAGE.size:
        raise DamagedError("the storage table has the wrong size", expected=storage_count * _STORAGE.size)
    storages: list[StoragePlace] = []
    for nbytes, offset, record, zero in _STORAGE.iter_unpack(storage_table):
        if record >= record_count or zero:
            raise DamagedError(f"storage {len(storages)} lies in record {record} of {record_count}")
        storages.append(StoragePlace(nbytes, offset, record))
    entries = EntryTable(entry_table)
    if len(entries) != entry_count:
        raise DamagedError("the manifest and its entry table disagree", expected=entry_count, actual=len(entries))
    return Manifest(storages, entries, bytes(tree), bytes(metadata_tree), record_count, block_digest(block))

"""Where storages lie: seen from a record, and from the manifest."""

from __future__ import annotations

from typing import NamedTuple


class PackedStorage(NamedTuple):
    """One storage of a record: its number, and its range in the record's raw bytes."""

    storage: int
    offset: int
    nbytes: int


class StoragePlace(NamedTuple):
    """Where a storage lies: ``nbytes`` bytes from ``offset`` on in the raw bytes of ``record``."""

    nbytes: int
    offset: int
    record: int

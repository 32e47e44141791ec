"""The plan: which storages share a record, and where everything lies.

Deterministic: it depends on the sizes and order of the storages alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastckpt.constants import PACK_ALIGNMENT, PACK_LIMIT, PACK_MAX_STORAGES, PACK_THRESHOLD
from fastckpt.layout.blocks import align
from fastckpt.layout.manifest import StoragePlace
from fastckpt.layout.records import PackedStorage


@dataclass(slots=True)
class RecordPlan:
    """A record to be written: its storages and the raw bytes they make together."""

    raw_size: int = 0
    storages: list[PackedStorage] = field(default_factory=list)

    def add(self, storage: int, nbytes: int) -> None:
        """Append a storage at the next free, aligned place."""
        offset = align(self.raw_size, PACK_ALIGNMENT)
        self.storages.append(PackedStorage(storage, offset, nbytes))
        self.raw_size = offset + nbytes

    def has_room(self, nbytes: int) -> bool:
        """Whether a small storage of ``nbytes`` still fits this pack."""
        fits = align(self.raw_size, PACK_ALIGNMENT) + nbytes <= PACK_LIMIT
        return fits and len(self.storages) < PACK_MAX_STORAGES


def plan_records(storage_sizes: Sequence[int]) -> tuple[list[RecordPlan], list[StoragePlace]]:
    """Give every storage a place.

    A storage of at least PACK_THRESHOLD bytes is a record of its own; smaller
    ones fill packs in order. Records stand in the order of their first storage.

    Returns:
        The records in file order, and the place of every storage.
    """
    records: list[RecordPlan] = []
    pack: RecordPlan | None = None
    places = []
    for storage, nbytes in enumerate(storage_sizes):
        if nbytes >= PACK_THRESHOLD:
            record = RecordPlan()
            records.append(record)
            number = len(records) - 1
        else:
            if pack is None or not pack.has_room(nbytes):
                pack = RecordPlan()
                records.append(pack)
                pack_number = len(records) - 1
            record, number = pack, pack_number
        record.add(storage, nbytes)
        places.append(StoragePlace(nbytes, record.storages[-1].offset, number))
    return records, places

"""The plan: which storages share a record, and where everything lies.

Deterministic: it depends on the sizes and order of the storages alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastckpt.constants import PACK_ALIGNMENT, PACK_LIMIT, PACK_MAX_STORAGES, PACK_THRESHOLD
from fastckpt.layout.blocks import align
from fastckpt.layout.places import PackedStorage, StoragePlace


@dataclass(slots=True)
class RecordPlan:
    """A record to be written: its storages and the raw bytes they make together."""

    raw_size: int = 0
    storages: list[PackedStorage] = field(default_factory=list)


def plan_records(storage_sizes: Sequence[int]) -> tuple[list[RecordPlan], list[StoragePlace]]:
    """Give every storage a place.

    A storage of at least PACK_THRESHOLD bytes is a record of its own; smaller
    ones fill packs in order. Records stand in the order of their first storage.

    Returns:
        The records in file order, and the place of every storage.
    """
    records: list[RecordPlan] = []
    pack = -1
    places = []
    for storage, nbytes in enumerate(storage_sizes):
        number = pack
        if nbytes >= PACK_THRESHOLD or pack < 0 or not _fits(records[pack], nbytes):
            number = len(records)
            records.append(RecordPlan())
            if nbytes < PACK_THRESHOLD:
                pack = number
        record = records[number]
        offset = align(record.raw_size, PACK_ALIGNMENT)
        record.storages.append(PackedStorage(storage, offset, nbytes))
        record.raw_size = offset + nbytes
        places.append(StoragePlace(nbytes, offset, number))
    return records, places


def _fits(pack: RecordPlan, nbytes: int) -> bool:
    size = align(pack.raw_size, PACK_ALIGNMENT) + nbytes
    return size <= PACK_LIMIT and len(pack.storages) < PACK_MAX_STORAGES

"""The plan: which storages share a record, and where everything lies.

Deterministic: it depends on the sizes and order of the storages alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastckpt.constants import PACK_ALIGNMENT, PACK_LIMIT, PACK_MAX_STORAGES, PACK_THRESHOLD
from fastckpt.layout.blocks import align
from fastckpt.layout.columns import rows_of
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
    sizes: list[int] = []  # Of every record, its raw bytes so far.
    numbers, offsets = [], []
    pack, packed = -1, 0
    for nbytes in storage_sizes:
        number, offset = pack, align(sizes[pack], PACK_ALIGNMENT) if pack >= 0 else 0
        is_small = nbytes < PACK_THRESHOLD
        if not is_small or pack < 0 or packed == PACK_MAX_STORAGES or offset + nbytes > PACK_LIMIT:
            number, offset = len(sizes), 0
            sizes.append(0)
            if is_small:
                pack, packed = number, 0
        packed += is_small
        sizes[number] = offset + nbytes
        numbers.append(number)
        offsets.append(offset)
    records = [RecordPlan(size) for size in sizes]
    for number, row in zip(numbers, rows_of(PackedStorage, range(len(numbers)), offsets, storage_sizes), strict=True):
        records[number].storages.append(row)
    return records, rows_of(StoragePlace, storage_sizes, offsets, numbers)

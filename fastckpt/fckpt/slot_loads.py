"""The bytes of records shared out to slots of memory that a supply fills one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from fastckpt.constants import CHUNK_SIZE
from fastckpt.layout.blocks import align


class LoadPart(NamedTuple):
    """Bytes ``[start, start + size)`` of a record, and where in the slot they go."""

    record: int
    start: int
    size: int
    offset: int


Load: TypeAlias = "list[LoadPart]"
"""What is in a slot at a time."""


def slot_loads(sizes: Sequence[int], capacity: int) -> list[Load]:
    """Share the bytes of records of these sizes out to slots of ``capacity`` bytes; cuts fall between chunks."""
    loads: list[Load] = [[]]
    at = 0
    for record, size in enumerate(sizes):
        start = 0
        while start < size:
            room = max(capacity - at, 0)
            part = size - start if size - start <= room else room // CHUNK_SIZE * CHUNK_SIZE
            if not part:
                loads.append([])
                at = 0
                continue
            loads[-1].append(LoadPart(record, start, part, at))
            start += part
            at = align(at + part)
    return loads

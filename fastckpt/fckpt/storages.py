"""The bytes of whole storages of a ``.fckpt``, or of a span of one, verified."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fastckpt import _core
from fastckpt.constants import LEAF_SIZE
from fastckpt.fckpt.bad_ranges import raise_damage
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.payload import Reading, Target, covering_targets, read_targets
from fastckpt.io.memory import allocate, allocate_regions
from fastckpt.layout.blocks import Extent, align
from fastckpt.layout.entries import StorageBytes
from fastckpt.layout.records import Record


def read_storages(
    file: CheckpointFile, storages: Iterable[int], reading: Reading, *, mapped: bool
) -> Callable[[int], StorageBytes]:
    """Read and verify storages; tells where the bytes of each now are.

    Raises:
        DamagedError: A byte is missing or wrong.
    """
    places = file.manifest.storages
    by_record: dict[int, list[int]] = {}
    for storage in sorted(set(storages)):
        by_record.setdefault(places[storage].record, []).append(storage)
    records = file.records_of(sorted(by_record))
    regions: dict[int, memoryview] = {}
    targets: list[Target] = []
    if mapped:
        whole = memoryview(file.source.map(private_writable=True))
        reading = Reading(reading.threads, reading.verify, reading.progress, _core.address(whole))
        for record in records:
            if record.is_raw:
                regions[record.number] = whole[record.payload.offset : record.payload.end]
                if reading.verify:
                    targets += covering_targets(record, [places[s] for s in by_record[record.number]], None)
    fresh = [record for record in records if record.number not in regions]
    for record, region in zip(fresh, allocate_regions([record.raw_size for record in fresh]), strict=True):
        regions[record.number] = region
        if record.raw_size:
            targets += covering_targets(record, [places[s] for s in by_record[record.number]], _core.address(region))
    raise_damage(file.source, read_targets(file.source, targets, reading))
    file.source.require_unchanged(next_step="load it again")

    def bytes_of(storage: int) -> StorageBytes:
        nbytes, offset, record = places[storage]
        return regions[record], offset, nbytes

    return bytes_of


def leaves_around(record: Record, start: int, end: int) -> Extent:
    """The raw bytes of a record that have to be read to prove those in ``[start, end)``."""
    first = start // LEAF_SIZE * LEAF_SIZE
    return Extent(first, min(align(end, LEAF_SIZE), record.raw_size) - first)


def read_leaves(file: CheckpointFile, record: Record, leaves: Extent, *, threads: int) -> memoryview:
    """Whole leaves of a record, verified. Raises DamagedError if one of them is not as written."""
    region = allocate(leaves.size)
    target = Target(record, leaves.offset, leaves.size, _core.address(region))
    raise_damage(file.source, read_targets(file.source, [target], Reading(threads)))
    return region


def read_span(file: CheckpointFile, storage: int, start: int, end: int, *, threads: int) -> memoryview:
    """The verified bytes ``[start, end)`` of a storage, reading no more leaves than they touch.

    Raises:
        DamagedError: A leaf among them is not as written.
    """
    if start == end:
        return memoryview(bytearray())
    place = file.manifest.storages[storage]
    record = file.record(place.record)
    leaves = leaves_around(record, place.offset + start, place.offset + end)
    skip = place.offset + start - leaves.offset
    return read_leaves(file, record, leaves, threads=threads)[skip : skip + end - start]

"""An open ``.fckpt`` as every other kind of checkpoint: each leaf of it is proven as it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fastckpt.constants import LEAF_SIZE, SECTION_SOURCE
from fastckpt.errors import CheckpointIOError, DamagedError
from fastckpt.fckpt.bad_ranges import raise_damage
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.payload import Reading, Target, read_targets
from fastckpt.fckpt.source_section import source_kind_and_size
from fastckpt.fckpt.storages import leaves_around, read_leaves, read_storages
from fastckpt.io.residency import reading_threads
from fastckpt.io.transfer import Progress, thread_count
from fastckpt.layout.blocks import Extent
from fastckpt.layout.entries import StorageBytes
from fastckpt.layout.records import Record
from fastckpt.stored.opened import LeafRun, OpenedFile, Witness

_KEPT_SIZE = 64 * 1024
"""Reads up to this size are kept until the next one: a leaf holds hundreds of small tensors."""


class OpenedFckpt(OpenedFile):
    """See `Opened`.

    Attributes:
        file: The records.
    """

    def __init__(self, file: CheckpointFile) -> None:
        entries = file.entries()
        sizes = [place.nbytes for place in file.manifest.storages]
        super().__init__(file.source, "fckpt", file.tree, entries, sizes)
        self.file = file
        self.root = file.footer.root.hex()
        self._kept: tuple[Record, Extent, memoryview] | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        return self.file.metadata()

    def prove(self, storage: int, *, threads: int) -> None:
        """See `Opened`: every part is proven when it is read."""

    @property
    def original(self) -> tuple[str, int] | None:
        """Kind and size of the file that it was converted from, if that is kept; the kind can be ``damaged``."""
        if self.file.footer.section(SECTION_SOURCE) is None:
            return None
        try:
            return source_kind_and_size(self.file.read_section(SECTION_SOURCE))
        except (DamagedError, CheckpointIOError):
            return "damaged", 0

    def place(self, storage: int) -> int | None:
        place = self.file.manifest.storages[storage]
        record = self.file.records[place.record]
        return record.payload.offset + place.offset if record.is_raw else None

    def witness(self, storage: int) -> Witness:
        return "leaves"

    def bring(
        self, storages: Iterable[int], *, threads: int | None, verify: bool, progress: Progress | None, mapped: bool
    ) -> Callable[[int], StorageBytes]:
        count = thread_count(threads) if mapped else reading_threads(self.source, threads)
        return read_storages(self.file, storages, Reading(count, verify=verify, progress=progress), mapped=mapped)

    def fill(self, places: Mapping[int, int], *, threads: int | None, progress: Progress | None) -> None:
        records = {self.file.manifest.storages[storage].record: at for storage, at in places.items()}
        found = self.file.records_of(records)
        targets = [Target(record, 0, record.raw_size, at) for record, at in zip(found, records.values(), strict=True)]
        reading = Reading(reading_threads(self.source, threads), progress=progress)
        raise_damage(self.source, read_targets(self.source, targets, reading))
        self.source.require_unchanged(next_step="load it again")

    def stands_alone(self, storage: int) -> bool:
        # The storages of a record fill it: the only one is all of it.
        return self.file.storage_counts[self.file.manifest.storages[storage].record] == 1

    def batches(self, storages: Iterable[int]) -> Iterator[list[int]]:
        by_record: dict[int, list[int]] = {}
        for storage in storages:
            by_record.setdefault(self.file.manifest.storages[storage].record, []).append(storage)
        yield from by_record.values()

    def read(self, storage: int, start: int, end: int) -> bytearray | memoryview:
        if start == end:
            return memoryview(bytearray())
        place = self.file.manifest.storages[storage]
        record = self.file.record(place.record)
        leaves = leaves_around(record, place.offset + start, place.offset + end)
        kept = self._kept
        if kept is not None and kept[:2] == (record, leaves):
            region = kept[2]
        else:
            region = read_leaves(self.file, record, leaves, threads=1)
            self.count(leaves.size)
            if leaves.size <= _KEPT_SIZE:
                self._kept = record, leaves, region
        skip = place.offset + start - leaves.offset
        return region[skip : skip + end - start]

    def leaf_run(self, storage: int, start: int, end: int) -> LeafRun | None:
        place = self.file.manifest.storages[storage]
        first, skip = divmod(place.offset + start, LEAF_SIZE)
        last = -(-(place.offset + end) // LEAF_SIZE)
        return LeafRun(skip, self.file.record(place.record).leaves[first * 8 : last * 8].cast("Q"))

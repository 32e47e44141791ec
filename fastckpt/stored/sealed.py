"""An open ``.pt`` or ``.safetensors`` with a seal beside it: every leaf is compared with that before anyone sees it.

What the file itself states of its bytes, such as a CRC-32, was compared when it was sealed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import DamagedError
from fastckpt.foreign.byte_order import turn_round, turn_round_at
from fastckpt.foreign.model import ForeignFile, ForeignStorage
from fastckpt.foreign.storages import StorageReader
from fastckpt.io.open_source import open_source
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.io.transfer import Move, Progress
from fastckpt.layout.blocks import Extent
from fastckpt.layout.entries import StorageBytes
from fastckpt.seals.bad_leaves import require_as_sealed
from fastckpt.seals.beside import require_same_file
from fastckpt.seals.reading import prove, prove_mapped, read_leaves, read_proven
from fastckpt.seals.standing import standing_of
from fastckpt.seals.sums import Sums
from fastckpt.stored.foreign import OpenedForeign
from fastckpt.stored.opened import LeafRun, Witness

_KEPT_SIZE = 64 * 1024
"""Reads up to this size are kept until the next one: a leaf holds hundreds of small tensors."""


class SealedReader(StorageReader):
    """See `StorageReader`; the seal is compared in place of the CRCs that the file states."""

    def __init__(
        self, foreign: ForeignFile, source: Source, sums: Sums, *, threads: int | None, progress: Progress | None
    ) -> None:
        super().__init__(foreign, source, threads=threads, verify=True, progress=progress)
        self._sums = sums

    def fill(self, places: Mapping[int, int]) -> None:
        stored = self._storages
        moves = [Move(stored[n].offset, address, stored[n].nbytes) for n, address in places.items()]
        bad = read_proven(self._source, self._sums, moves, threads=self._threads, progress=self._told())
        self._source.require_unchanged(next_step="load it again")
        require_as_sealed(self._source, self._sums, bad)
        for n, address in places.items():
            turn_round_at(address, stored[n].nbytes, stored[n].unit)

    def prove_mapped(self, storages: Sequence[int], base: int) -> None:
        ranges = [(self._storages[n].offset, self._storages[n].offset + self._storages[n].nbytes) for n in storages]
        told = self._told()
        bad = prove_mapped(self._source, self._sums, ranges, base, threads=self._threads, progress=told)
        require_as_sealed(self._source, self._sums, bad)
        self._done += sum(self._storages[n].nbytes for n in storages)


class OpenedSealed(OpenedForeign):
    """See `Opened`.

    Attributes:
        sums: What the seal says.

    Raises:
        DamagedError: The file is not the one that was sealed, or what gives it its structure is not as it was.
    """

    def __init__(self, source: Source, foreign: ForeignFile, sums: Sums) -> None:
        super().__init__(source, foreign)
        self.sums = sums
        self._kept: tuple[Extent, memoryview] | None = None
        require_same_file(source, sums)
        bad = prove(source, sums, structure_of(foreign, source.size), threads=reading_threads(source, None))
        require_as_sealed(source, sums, bad)

    def witness(self, storage: int) -> Witness:
        return "leaves"

    def bring(
        self, storages: Iterable[int], *, threads: int | None, verify: bool, progress: Progress | None, mapped: bool
    ) -> Callable[[int], StorageBytes]:
        if not verify:
            return super().bring(storages, threads=threads, verify=False, progress=progress, mapped=mapped)
        return self._reader(threads, progress).bring(storages, mapped=mapped)

    def fill(self, places: Mapping[int, int], *, threads: int | None, progress: Progress | None) -> None:
        self._reader(threads, progress).fill(places)

    def _reader(self, threads: int | None, progress: Progress | None) -> SealedReader:
        return SealedReader(self.foreign, self.source, self.sums, threads=threads, progress=progress)

    def prove(self, storage: int, *, threads: int) -> None:
        """See `Opened`: every part is proven when it is read."""

    def prove_stored(self, stored: ForeignStorage, *, threads: int) -> None:
        bad = prove(self.source, self.sums, [(stored.offset, stored.offset + stored.nbytes)], threads=threads)
        require_as_sealed(self.source, self.sums, bad)

    def read(self, storage: int, start: int, end: int) -> bytearray | memoryview:
        if start == end:
            return memoryview(bytearray())
        stored = self.foreign.storages[storage]
        first, last = start - start % stored.unit, min(end + -end % stored.unit, stored.nbytes)
        leaves = self.sums.leaves_around(stored.offset + first, stored.offset + last)
        kept = self._kept
        if kept is not None and kept[0] == leaves:
            region = kept[1]
        else:
            region, bad = read_leaves(self.source, self.sums, leaves)
            require_as_sealed(self.source, self.sums, bad)
            self.count(leaves.size)
            if leaves.size <= _KEPT_SIZE:
                self._kept = leaves, region
        skip = stored.offset + first - leaves.offset
        numbers = region[skip : skip + last - first]
        if stored.unit > 1:
            numbers = memoryview(bytearray(numbers))
            turn_round(numbers, stored.unit)
        return numbers[start - first : end - first]

    def leaf_run(self, storage: int, start: int, end: int) -> LeafRun | None:
        stored = self.foreign.storages[storage]
        if stored.unit > 1:
            return None
        skip = (stored.offset + start) % LEAF_SIZE
        leaves = self.sums.leaves_around(stored.offset + start, stored.offset + end)
        return LeafRun(skip, self.sums.digests_of(leaves).cast("Q"))


def structure_of(foreign: ForeignFile, size: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a file that are in no storage: what gives it its structure, first byte and first after."""
    others = filter(foreign.is_storage, foreign.others)
    at = 0
    for begin, end in sorted((s.offset, s.offset + s.nbytes) for s in (*foreign.storages, *others)):
        if at < begin:
            yield at, begin
        at = max(at, end)
    if at < size:
        yield at, size


def require_all_as_sealed(source: Source, sums: Sums) -> None:
    """Raise DamagedError, or CheckpointIOError, unless every byte of a file is as it was sealed.

    For a file of which another form is read: a packed .pt has been unpacked by then, so it is opened anew.
    """
    with open_source(source.origin) as itself:
        if itself.identity != source.identity:
            raise DamagedError("another file has taken its place", path=source.path, next_step="load it again")
        require_same_file(itself, sums)
        standing = standing_of(itself, sums, threads=reading_threads(itself, None))
        require_as_sealed(itself, sums, standing.bad)
        if standing.stale:
            raise DamagedError(f"this is not the file that was sealed: {standing.stale}", path=source.path)

"""The bytes of whole storages of a ``.pt`` or ``.safetensors`` file, checked against the CRCs that it states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from fastckpt import _core
from fastckpt.constants import LEAF_SIZE
from fastckpt.foreign.byte_order import turn_round_at
from fastckpt.foreign.checks import check_crcs, wrong_crcs
from fastckpt.foreign.model import ForeignFile
from fastckpt.io.anew import until_right
from fastckpt.io.memory import allocate_regions
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.io.transfer import MEMORY, NOWHERE, Move, Progress, thread_count, transfer
from fastckpt.layout.dtypes import WIDEST
from fastckpt.layout.entries import StorageBytes


class StorageReader:
    """One reading of an open foreign file, in one or more moves.

    Args:
        foreign: Its structure.
        source: The file it was read from.
        threads: Worker threads; None takes what the medium wants.
        verify: Whether CRCs are computed and compared.
        progress: Called with the bytes done so far.
    """

    def __init__(
        self, foreign: ForeignFile, source: Source, *, threads: int | None, verify: bool, progress: Progress | None
    ) -> None:
        self._storages = foreign.storages
        self._foreign = foreign
        self._source = source
        self._threads = threads
        self._verify = verify
        self._progress = progress
        self._done = 0
        self._crcs = [storage.crc or 0 for storage in foreign.storages]

    def bring(self, storages: Iterable[int], *, mapped: bool) -> Callable[[int], StorageBytes]:
        """Storages in fresh memory; with ``mapped``, those stay mapped that lie in the file as they shall be.

        Returns:
            Where the bytes of each now are.

        Raises:
            DamagedError: A CRC does not match; names the tensors.
            CheckpointIOError: The system could not read.
        """
        wanted = sorted(set(storages))
        places: dict[int, StorageBytes] = {}
        if mapped:
            whole = memoryview(self._source.map(private_writable=True))
            aligned = [n for n in wanted if self._storages[n].offset % WIDEST == 0 and self._storages[n].unit == 1]
            places = {n: (whole, self._storages[n].offset, self._storages[n].nbytes) for n in aligned}
            if self._verify:
                self.prove_mapped(aligned, _core.address(whole))
        rest = [n for n in wanted if n not in places]
        regions = allocate_regions([self._storages[n].nbytes for n in rest], [self._storages[n].offset for n in rest])
        places |= {n: (region, 0, region.nbytes) for n, region in zip(rest, regions, strict=True)}
        self.fill({n: _core.address(region) for n, region in zip(rest, regions, strict=True) if region.nbytes})
        return places.__getitem__

    def fill(self, places: Mapping[int, int]) -> None:
        """Read storages to the addresses given for them. Raises what `bring` does."""

        def read(wanted: Sequence[int], progress: Progress | None) -> list[int]:
            moves = [Move(self._storages[n].offset, places[n], self._storages[n].nbytes) for n in wanted]
            self._transfer(wanted, moves, in_place=False, progress=progress)
            return wrong_crcs(self._foreign, self._crcs) if self._verify else []

        wrong = read([*places], self._told())
        until_right(self._source, wrong, lambda wrong: read([n for n in wrong if n in places], None))
        self._done += sum(self._storages[n].nbytes for n in places)
        self._source.require_unchanged(next_step="load it again")
        if self._verify:
            check_crcs(self._foreign, self._crcs)
        for n, address in places.items():
            turn_round_at(address, self._storages[n].nbytes, self._storages[n].unit)

    def prove_mapped(self, storages: Sequence[int], base: int) -> None:
        """Take what proves storages that are mapped from the address ``base`` on; `fill` compares it."""
        proven = [n for n in storages if self._storages[n].crc is not None]
        moves = [Move(base + self._storages[n].offset, 0, self._storages[n].nbytes) for n in proven]
        self._transfer(proven, moves, in_place=True, progress=self._told())
        self._done += sum(move.size for move in moves)

    def _told(self) -> Progress | None:
        """What reports what is done of this move as a part of all."""
        progress, done = self._progress, self._done
        return None if progress is None else lambda count: progress(done + count)

    def _transfer(
        self, storages: Sequence[int], moves: Sequence[Move], *, in_place: bool, progress: Progress | None
    ) -> None:
        if not moves:
            return
        if in_place:
            moved = transfer(
                moves,
                source=MEMORY,
                sink=NOWHERE,
                threads=thread_count(self._threads),
                leaves=False,
                crcs=self._verify,
                mapped=True,
                progress=progress,
            )
        else:
            moved = self._source.transfer(
                moves,
                sink=MEMORY,
                threads=reading_threads(self._source, self._threads),
                leaves=False,
                crcs=self._verify,
                progress=progress,
            )
        for fault in moved.faults:
            offset, errno = self._storages[storages[fault.move]].offset + fault.offset, fault.errno
            if in_place:
                errno = self._source.errno_of_map(offset, min(fault.size, LEAF_SIZE))
            self._source.raise_fault(offset, errno)
        for storage, crc in zip(storages, moved.crcs, strict=False):
            self._crcs[storage] = crc

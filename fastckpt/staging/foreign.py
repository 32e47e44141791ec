"""A ``.pt`` or ``.safetensors`` file as the staging pipeline sees it: ranges of the file, CRCs checked on the host."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch

from fastckpt import _core
from fastckpt.constants import PACK_ALIGNMENT, PACK_LIMIT, PACK_MAX_STORAGES, PACK_THRESHOLD
from fastckpt.foreign.byte_order import turn_round_at
from fastckpt.foreign.checks import check_crcs
from fastckpt.foreign.model import ForeignFile
from fastckpt.io.source import Source
from fastckpt.layout.blocks import align
from fastckpt.layout.entries import Entry
from fastckpt.staging.fill import Filler, Row, RowFiller
from fastckpt.staging.regions import Part, Piece, Placed, Region, Suspect


class ForeignOrigin:
    """The storages that some entries of a foreign file lie in.

    Attributes:
        source: The file.
        witness: CRCs, or nothing where it has none.
        crcs: CRC-32 by storage: as stated until it has been computed.
        on_host: Whether any of the storages is big-endian.
    """

    witness: Literal["leaves", "crcs", "nothing"]

    def __init__(self, foreign: ForeignFile, source: Source, entries: Sequence[Entry]) -> None:
        self.source = source
        self.foreign = foreign
        self.crcs = [storage.crc or 0 for storage in foreign.storages]
        self._wanted = sorted({entry.storage for entry in entries}, key=lambda n: (foreign.storages[n].offset, n))
        stated = any(foreign.storages[n].crc is not None and foreign.storages[n].nbytes for n in self._wanted)
        self.witness = "crcs" if stated else "nothing"
        self.on_host = any(foreign.storages[n].unit > 1 for n in self._wanted)

    def regions(self) -> list[Region]:
        """A region for each large storage; small ones that follow one another share one."""
        regions = []
        for placed in self._groups():
            parts = [Part(self.foreign.storages[p.storage].offset, p.offset, p.nbytes) for p in placed if p.nbytes]
            regions.append(Region(placed[-1].offset + placed[-1].nbytes, placed, parts))
        return regions

    def _groups(self) -> Iterator[list[Placed]]:
        group: list[Placed] = []
        for number in self._wanted:
            nbytes = self.foreign.storages[number].nbytes
            large = nbytes >= PACK_THRESHOLD
            at = align(group[-1].offset + group[-1].nbytes, PACK_ALIGNMENT) if group else 0
            if group and (large or at + nbytes > PACK_LIMIT or len(group) == PACK_MAX_STORAGES):
                yield group
                group, at = [], 0
            group.append(Placed(number, at, nbytes))
            if large:
                yield group
                group = []
        if group:
            yield group

    def filler(
        self, turns: Sequence[Sequence[Piece]], slots: Sequence[torch.Tensor], *, threads: int, verify: bool
    ) -> Filler:
        """What fills the slots; with ``verify`` it computes every CRC the file states."""
        return _CrcFiller(self, turns, slots, threads=threads, verify=verify and self.witness == "crcs")

    def raise_damage(self, suspects: Iterable[Suspect], *, verify: bool) -> None:
        """Raise DamagedError for the storages whose CRC, computed by now, is not the one stated."""
        check_crcs(self.foreign, self.crcs)


class _CrcFiller:
    """Reads ranges of the file; with ``verify``, computes the CRC of every storage on the way."""

    def __init__(
        self,
        origin: ForeignOrigin,
        turns: Sequence[Sequence[Piece]],
        slots: Sequence[torch.Tensor],
        *,
        threads: int,
        verify: bool,
    ) -> None:
        self._origin = origin
        self._verify = verify
        self._slots = slots
        self._filler = RowFiller(origin.source, turns, slots, threads=threads, crcs=verify)
        self._running: dict[int, int] = {}

    def wait(self, turn: int) -> list[Suspect]:
        for row, fault in self._filler.wait(turn):
            number, begin = self._storage_of(row)
            place = self._origin.foreign.storages[number].offset + row.offset - begin + fault.offset
            self._origin.source.raise_fault(place, fault.errno)
        suspects = self._compare(turn) if self._verify else []
        self._turn_round(turn)
        return suspects

    def _compare(self, turn: int) -> list[Suspect]:
        """What has by now another CRC-32 than the file states."""
        suspects = []
        rows, first = self._filler.rows[turn], self._filler.first_row(turn)
        for row, crc in zip(rows, self._filler.crcs[first : first + len(rows)], strict=True):
            number, begin = self._storage_of(row)
            if row.offset > begin:
                crc = _core.crc32_combine(self._running.pop(number), crc, row.size)
            storage = self._origin.foreign.storages[number]
            if row.offset + row.size < begin + storage.nbytes:
                self._running[number] = crc
                continue
            if storage.crc is not None:
                self._origin.crcs[number] = crc
                if crc != storage.crc:
                    suspects.append(Suspect(row.piece.region, begin, storage.nbytes))
        return suspects

    def _turn_round(self, turn: int) -> None:
        """Make the numbers of big-endian files in a full slot little-endian. No slot ends inside a number."""
        if not self._origin.on_host:
            return
        base = self._slots[turn % len(self._slots)].data_ptr()
        for row in self._filler.rows[turn]:
            unit = self._origin.foreign.storages[self._storage_of(row)[0]].unit
            turn_round_at(base + row.piece.slot_offset + row.offset - row.piece.offset, row.size, unit)

    @staticmethod
    def _storage_of(row: Row) -> tuple[int, int]:
        """The storage that a row belongs to, and where in the region that begins."""
        placed = row.piece.region.placed
        # Of several that begin at one place, all but the last are empty.
        found = placed[bisect_right(placed, row.offset, key=lambda p: p.offset) - 1]
        return found.storage, found.offset

    def release(self) -> None:
        self._filler.release()

    def stop_proving(self) -> int:
        """See `Filler`: a file without leaf digests has nothing that others could prove."""
        return len(self._filler.rows)

    def close(self) -> None:
        self._filler.close()

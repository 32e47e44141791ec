"""A sealed ``.pt`` or ``.safetensors`` as the staging pipeline sees it: leaves of the file, which a device checks too.

To the pipeline such a file is one record whose raw bytes are all of the file: whole leaves go to the device, and a
storage lies in them where it lies in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch

from fastckpt.constants import DIGEST_SIZE, LEAF_SIZE, PACK_LIMIT, PACK_MAX_STORAGES, PACK_THRESHOLD
from fastckpt.errors import DamagedError
from fastckpt.foreign.model import ForeignFile
from fastckpt.io.source import Source
from fastckpt.layout.blocks import Extent
from fastckpt.layout.entries import Entry
from fastckpt.layout.records import Record
from fastckpt.seals.bad_leaves import require_as_sealed
from fastckpt.seals.reading import prove, runs_around
from fastckpt.seals.sums import Sums
from fastckpt.staging.fill import Filler, RawFiller
from fastckpt.staging.foreign import ForeignOrigin
from fastckpt.staging.regions import Part, Piece, Placed, Region, Suspect
from fastckpt.staging.stage import Origin
from fastckpt.text import quoted


def sealed_origin(foreign: ForeignFile, source: Source, sums: Sums, entries: Sequence[Entry]) -> Origin:
    """Where the bytes of some of the entries of a sealed file come from.

    What is big-endian is changed in the slots, where leaves could not be checked any more: it is proven first.

    Raises:
        DamagedError: Then, if it is not as it was sealed.
    """
    wanted = sorted({entry.storage for entry in entries}, key=lambda n: (foreign.storages[n].offset, n))
    stored = [foreign.storages[number] for number in wanted]
    if any(storage.unit > 1 for storage in stored):
        ranges = [(storage.offset, storage.offset + storage.nbytes) for storage in stored]
        require_as_sealed(source, sums, prove(source, sums, ranges, threads=1))
        return ForeignOrigin(foreign, source, entries)
    places = [Placed(n, storage.offset, storage.nbytes) for n, storage in zip(wanted, stored, strict=True)]
    return SealedOrigin(source, sums, places)


class SealedOrigin:
    """The storages that some entries of a sealed file lie in.

    Attributes:
        source: The file.
        witness: Leaf digests, which a device can check too.
        on_host: False: they are on the device what they are in the file.

    Args:
        places: The storages, by where they begin in the file.
    """

    witness: Literal["leaves", "crcs", "nothing"] = "leaves"
    on_host: bool = False

    def __init__(self, source: Source, sums: Sums, places: Sequence[Placed]) -> None:
        self.source = source
        self._sums = sums
        self._places = places
        self._file = _as_record(sums)

    def regions(self) -> list[Region]:
        """The leaves around each large storage, and around small ones that follow one another."""
        return [region for group in self._groups() for region in self._regions_of(group)]

    def _groups(self) -> Iterator[list[Placed]]:
        group: list[Placed] = []
        for placed in self._places:
            large = placed.nbytes >= PACK_THRESHOLD
            span = placed.offset + placed.nbytes - group[0].offset if group else 0
            if group and (large or span > PACK_LIMIT or len(group) == PACK_MAX_STORAGES):
                yield group
                group = []
            group.append(placed)
            if large:
                yield group
                group = []
        if group:
            yield group

    def _regions_of(self, group: Sequence[Placed]) -> Iterator[Region]:
        """The runs of leaves around storages. Those without bytes come with the first."""
        runs = runs_around(self._sums, ((placed.offset, placed.offset + placed.nbytes) for placed in group))
        regions = [Region(run.size, [], [Part(run.offset, 0, run.size, self._file, run.offset)]) for run in runs]
        regions = regions or [Region(0, [], [])]
        at = 0
        for number, offset, nbytes in group:
            while nbytes and offset >= runs[at].end:
                at += 1
            regions[at].placed.append(Placed(number, offset - runs[at].offset if nbytes else 0, nbytes))
        for region in regions:
            region.placed.sort(key=lambda placed: placed.offset)
        yield from regions

    def filler(
        self, turns: Sequence[Sequence[Piece]], slots: Sequence[torch.Tensor], *, threads: int, verify: bool
    ) -> Filler:
        """What fills the slots; with ``verify`` it compares every leaf digest on the way."""
        return RawFiller(self.source, turns, slots, threads=threads, verify=verify)

    def raise_damage(self, suspects: Iterable[Suspect], *, verify: bool) -> None:
        """Raise the error of a load on the CPU that meets these leaves.

        They are read again: where the file is right, the bytes changed on their way from it, and the error says so.

        Raises:
            DamagedError: Always, if there is a suspect.
        """
        ranges: list[tuple[int, int]] = []
        for region, offset, size in suspects:
            for part in region.parts_around(offset, size):
                begin = part.source + max(offset - part.offset, 0)
                ranges.append((begin, part.source + min(offset + size - part.offset, part.size)))
        bad = prove(self.source, self._sums, ranges, threads=1)
        require_as_sealed(self.source, self._sums, bad if verify else [run for run in bad if run.errno])
        first = min(begin for begin, _ in ranges) // LEAF_SIZE
        extent = self._sums.leaf_extent(first)
        names = [t.name for t in self._sums.tensors if t.offset < extent.end and t.end > extent.offset]
        raise DamagedError(
            f"leaf {first} was damaged on its way to the device; in the file it is right",
            path=self.source.path,
            offset=extent.offset,
            tensor=names[0] if names else None,
            next_step=f"load {quoted(self.source.path)} again; if it happens again, "
            "test the memory of this machine and the link to the device",
        )


def _as_record(sums: Sums) -> Record:
    """The file as a record that is stored as it is, from its first byte on."""
    nothing = memoryview(b"")
    return Record(
        number=0,
        header=Extent(0, 0),
        raw_size=sums.size,
        stored_size=sums.size,
        chunks=[],
        leaves=sums.digests,
        storages=[],
        entry_table=nothing,
        manifest_digest=bytes(DIGEST_SIZE),
        digest=bytes(DIGEST_SIZE),
    )

"""A ``.fckpt`` file as the pipeline sees it: regions of records, and what a bad leaf in one of them means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch

from fastckpt.constants import CHUNK_SIZE, LEAF_SIZE, LEAVES_PER_CHUNK
from fastckpt.errors import DamagedError
from fastckpt.fckpt.bad_ranges import raise_damage, tensors_in
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.payload import Reading, Target, covering_targets, read_targets
from fastckpt.layout.entries import Entry
from fastckpt.layout.records import count_leaves
from fastckpt.staging.fill import DecodingFiller, Filler, RawFiller
from fastckpt.staging.regions import Part, Piece, Placed, Region, Suspect
from fastckpt.text import quoted, some


class RecordOrigin:
    """The records that some entries lie in.

    Attributes:
        source: The file.
        witness: Leaf digests, which a device can check too.
        on_host: False: they are on the device what they are in the file.
    """

    witness: Literal["leaves", "crcs", "nothing"] = "leaves"
    on_host: bool = False

    def __init__(self, file: CheckpointFile, entries: Sequence[Entry]) -> None:
        self.source = file.source
        self._file = file
        self._storages = sorted({entry.storage for entry in entries})

    def regions(self) -> list[Region]:
        """The leaf-aligned runs of records that cover the storages, in file order."""
        places = self._file.manifest.storages
        by_record: dict[int, list[int]] = {}
        for storage in self._storages:
            by_record.setdefault(places[storage].record, []).append(storage)
        regions = []
        for record in self._file.records_of(sorted(by_record)):
            here = sorted(by_record[record.number], key=lambda storage: places[storage].offset)
            # A record of which only empty storages are wanted has no bytes to bring, but they must arrive.
            targets = covering_targets(record, [places[s] for s in here], None) or [Target(record, 0, 0, None)]
            regions += [_region(target) for target in targets]
            at = 0
            for storage in here:
                nbytes, offset, _ = places[storage]
                while nbytes and offset >= targets[at].start + targets[at].size:
                    at += 1
                placed = Placed(storage, max(offset - targets[at].start, 0) if nbytes else 0, nbytes)
                regions[at - len(targets)].placed.append(placed)
        return regions

    def filler(
        self, turns: Sequence[Sequence[Piece]], slots: Sequence[torch.Tensor], *, threads: int, verify: bool
    ) -> Filler:
        """What fills the slots; with ``verify`` it compares every leaf digest on the way."""
        regions = {piece.region for turn in turns for piece in turn}
        raw = all(part.record is None or part.record.is_raw for region in regions for part in region.parts)
        kind = RawFiller if raw else DecodingFiller
        return kind(self.source, turns, slots, threads=threads, verify=verify)

    def filler_for_decoding(
        self,
        turns: Sequence[Sequence[Piece]],
        slots: Sequence[torch.Tensor],
        *,
        threads: int,
        verify: bool,
        decode: bool,
    ) -> DecodingFiller:
        """The same for a device that can decode, or soon will: with ``decode`` it is all done here until then."""
        return DecodingFiller(self.source, turns, slots, threads=threads, verify=verify, decode=decode)

    def raise_damage(self, suspects: Iterable[Suspect], *, verify: bool) -> None:
        """Raise the error of a load on the CPU that meets these leaves.

        They are read again: where the file is right, the bytes changed on
        their way from it, and the error says so.

        Raises:
            DamagedError: Always, if there is a suspect.
        """
        leaves: dict[Target, range] = {}
        for suspect in suspects:
            for part in suspect.region.parts_around(suspect.offset, suspect.size):
                for target, bad in _bad_chunks(suspect, part):
                    leaves.setdefault(target, bad)
        raise_damage(self.source, read_targets(self.source, list(leaves), Reading(1, verify=verify)))
        (record, _, _, _), bad = next(iter(leaves.items()))
        chunk = bad.start // LEAVES_PER_CHUNK
        names = tensors_in(record, bad.start * LEAF_SIZE, bad.stop * LEAF_SIZE)
        raise DamagedError(
            f"record {record.number}, leaf {bad.start} was damaged on its way to the device; in the file it is "
            f"right: {some(names) or 'padding between tensors'}",
            path=self.source.path,
            offset=record.chunk_extent(chunk).offset,
            tensor=names[0] if names else None,
            chunk=chunk,
            next_step=f"load {quoted(self.source.path)} again; if it happens again, "
            "test the memory of this machine and the link to the device",
        )


def _bad_chunks(suspect: Suspect, part: Part) -> Iterator[tuple[Target, range]]:
    """What a part has of each chunk with suspect leaves, and these leaves."""
    record = part.record
    assert record is not None, "only records have chunks"
    begin = part.start + max(suspect.offset - part.offset, 0)
    stop = part.start + min(suspect.offset + suspect.size - part.offset, part.size)
    for chunk in range(begin // CHUNK_SIZE, -(-stop // CHUNK_SIZE)):
        raw = record.chunk_raw(chunk)
        start, end = max(raw.offset, part.start), min(raw.end, part.start + part.size)
        leaves = range(max(begin, start) // LEAF_SIZE, count_leaves(min(stop, end)))
        yield Target(record, start, end - start, None), leaves


def _region(target: Target) -> Region:
    record, start, size, _ = target
    parts = [Part(record.payload.offset + start, 0, size, record, start)] if size else []
    return Region(size, [], parts)

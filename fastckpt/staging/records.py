"""A ``.fckpt`` file as the pipeline sees it: regions of records, and what a bad leaf in one of them means."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Literal

import torch

from fastckpt.constants import LEAF_SIZE, LEAVES_PER_CHUNK
from fastckpt.errors import DamagedError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.payload import Reading, Target, covering_targets, raise_damage, read_targets, tensors_in
from fastckpt.layout.entries import Entry
from fastckpt.staging.fill import DecodingFiller, Filler, RawFiller, Suspect
from fastckpt.staging.regions import Part, Piece, Placed, Region


class RecordOrigin:
    """The records that some entries lie in.

    Attributes:
        source: The file.
        witness: Leaf digests, which a device can check too.
    """

    witness: Literal["leaves", "crcs", "nothing"] = "leaves"

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
        for number in sorted(by_record):
            record = self._file.records[number]
            here = sorted(by_record[number], key=lambda storage: places[storage].offset)
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
        raw = all(piece.region.record is None or piece.region.record.is_raw for turn in turns for piece in turn)
        kind = RawFiller if raw else DecodingFiller
        return kind(self.source, turns, slots, threads=threads, verify=verify)

    def raise_damage(self, suspects: Iterable[Suspect], *, verify: bool) -> None:
        """Raise the error of a load on the CPU that meets these leaves.

        They are read again: where the file is right, the bytes changed on
        their way from it, and the error says so.

        Raises:
            DamagedError: Always, if there is a suspect.
        """
        chunks = {
            (suspect.region, leaf // LEAVES_PER_CHUNK): suspect
            for suspect in suspects
            for leaf in range(suspect.leaf, suspect.leaf + suspect.leaves)
        }
        targets = dict.fromkeys(_chunk_of(region, chunk) for region, chunk in chunks)
        raise_damage(self.source, read_targets(self.source, list(targets), Reading(1, verify=verify)))
        for suspect in chunks.values():
            record, leaf = suspect.region.record, suspect.leaf
            if record is None:
                continue
            names = tensors_in(record, leaf * LEAF_SIZE, (leaf + suspect.leaves) * LEAF_SIZE)
            raise DamagedError(
                f"record {record.number}, leaf {leaf} did not arrive as it is in the file, which is right when it is "
                f"read again: {', '.join(names[:3]) or 'padding between tensors'}",
                path=self.source.path,
                offset=record.chunk_extent(leaf // LEAVES_PER_CHUNK).offset,
                tensor=names[0] if names else None,
                chunk=leaf // LEAVES_PER_CHUNK,
                next_step=f"load {shlex.quote(self.source.path)} again; if it happens again, "
                "test the memory of this machine and the link to the device",
            )


def _region(target: Target) -> Region:
    record, start, size, _ = target
    parts = [Part(record.payload.offset + start, 0, size)] if size else []
    return Region(size, [], parts, record, start)


def _chunk_of(region: Region, chunk: int) -> Target:
    """The part of a chunk that a region wants."""
    record = region.record
    assert record is not None, "only records have chunks"
    raw = record.chunk_raw(chunk)
    start, end = max(raw.offset, region.start), min(raw.end, region.start + region.nbytes)
    return Target(record, start, end - start, None)

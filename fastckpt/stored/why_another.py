"""Why a seal that differs from its file is of another one: then the file must not become again what it was."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import FastckptError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.payload import Reading, Target, read_targets
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.source import Source
from fastckpt.layout.blocks import align
from fastckpt.seals.standing import WRITTEN_ANEW, Standing
from fastckpt.stored.verify import is_whole_by_itself

_PLACES: Final = 64
"""Parts of records that are looked at first; each is as large as a run of leaves that differ."""


def why_another(source: Source, standing: Standing, *, threads: int) -> str:
    """Why an open file was written anew since it was sealed; empty if it was damaged, or is as it was sealed."""
    if standing.stale or standing.is_as_sealed:
        return standing.stale
    if _is_damaged_there(source, standing, threads):
        return ""
    return WRITTEN_ANEW if is_whole_by_itself(source, threads=threads) else ""


def _is_damaged_there(source: Source, standing: Standing, threads: int) -> bool:
    """Whether the digests that a ``.fckpt`` has of its own do not match where its seal does not.

    Then the rest of it need not be read to know that it is not whole. False where that cannot be told.
    """
    try:
        if not standing.bad or kind_of(source) != "fckpt":
            return False
        targets = list(islice(_parts(CheckpointFile(source), standing), _PLACES))
        return bool(read_targets(source, targets, Reading(threads)))
    except FastckptError:
        return False


def _parts(file: CheckpointFile, standing: Standing) -> Iterator[Target]:
    """The bytes of records, as they are, around the leaves that differ."""
    for run in standing.bad:
        differing = standing.sums.leaf_extent(run.first, run.leaves)
        for record in file.records:
            begin = max(differing.offset - record.payload.offset, 0) // LEAF_SIZE * LEAF_SIZE
            end = min(align(max(differing.end - record.payload.offset, 0), LEAF_SIZE), record.raw_size)
            if record.is_raw and begin < end:
                yield Target(record, begin, end - begin, None)
